"""An application that calls without end and prints one JSON line for each call; `kubectl logs` is its diary.

Runs inside the application's container by `python -c`. Environment: `CALLS_PER_SECOND`, `USERS`.
"""

import itertools
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
body = json.dumps({"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "Hello"}]}).encode()
key = "Bearer " + os.environ["OPENAI_API_KEY"]
pace_seconds = 1 / float(os.environ["CALLS_PER_SECOND"])
due = time.time()
for number in itertools.count():
    user = f"user-{number % int(os.environ['USERS'])}"
    headers = {"Authorization": key, "Content-Type": "application/json", "x-user-id": user}
    line = {"pod": socket.gethostname(), "at": time.time(), "user": user, "status": 0}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    except OSError as error:
        line["error"] = str(error)
        answer = None
    if answer is not None:
        content = json.load(answer)
        line |= {"status": answer.status, "model": content.get("model"), "error": content.get("error")}
        line |= {"arm": answer.headers.get("x-sluice-arm"), "decision": answer.headers.get("x-sluice-decision")}
    line["seconds"] = round(time.time() - line["at"], 4)
    print(json.dumps(line), flush=True)
    due += pace_seconds
    time.sleep(max(due - time.time(), 0))
