"""What an application does with the official SDK: it names no address and no key, and its calls are answered.

Runs inside the application's container by `python -c`; prints one JSON line.
"""

import json

import openai

client = openai.OpenAI()
messages = [{"role": "user", "content": "Hello"}]
answer = client.chat.completions.create(model="gpt-4.1-mini", messages=messages)
pieces = [
    piece.choices[0].delta.content or ""
    for piece in client.chat.completions.create(model="gpt-4.1-mini", messages=messages, stream=True)
    if piece.choices
]
response = client.responses.create(model="gpt-4.1-mini", input="Hello")
told = {"text": answer.choices[0].message.content, "streamed": "".join(pieces), "response": response.output_text}
print(json.dumps(told | {"key": client.api_key, "url": str(client.base_url)}))
