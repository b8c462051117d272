"""What LiteLLM makes of the gateway; prints one JSON object.

usage: litellm_client.py BASE_URL IMAGE
"""

import base64
import json
import sys
from pathlib import Path

import litellm

URL = f"data:image/png;base64,{base64.b64encode(Path(sys.argv[2]).read_bytes()).decode()}"
CONTENT = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "text", "text": "What is the sum of the red cards?"},
]
ASKED = {
    "model": "openai/mini",
    "api_base": sys.argv[1],
    "api_key": "none",
    "max_retries": 0,
    "messages": [{"role": "user", "content": CONTENT}],
    "extra_body": {"cogitate": {"agents": 4}},
}

told: dict[str, object] = {}
whole = litellm.completion(**ASKED)
told["whole"] = whole.choices[0].message.content
told["usage"] = whole.usage.total_tokens
chunks = list(litellm.completion(**ASKED, stream=True))
told["streamed"] = "".join(one.choices[0].delta.content or "" for one in chunks)
try:
    litellm.completion(**{**ASKED, "model": "openai/nobody"})
except litellm.NotFoundError as error:
    told["error"] = {"kind": type(error).__name__, "status": error.status_code}
sys.stdout.write(json.dumps(told))
