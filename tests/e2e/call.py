"""What the application does: calls through whatever OPENAI_BASE_URL says, and prints one JSON line for each call.

Runs inside the application's container by `python -c`; argument 1 is a JSON list of user names, one call each.
"""

import json
import os
import sys
import urllib.error
import urllib.request

users = json.loads(sys.argv[1]) if len(sys.argv) > 1 else ["user-1"]
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
body = json.dumps({"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "Hello"}]}).encode()
failed = False
for user in users:
    headers = {
        "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
        "Content-Type": "application/json",
        "x-user-id": user,
    }
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    content = json.load(answer)
    failed = failed or answer.status != 200
    line = {"user": user, "status": answer.status, "model": content.get("model"), "error": content.get("error")}
    line["headers"] = {name.lower(): value for name, value in answer.headers.items()}
    print(json.dumps(line), flush=True)
sys.exit(1 if failed and len(sys.argv) < 2 else 0)
