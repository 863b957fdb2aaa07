"""The Hub that all tests talk to, on loopback; to be imported before huggingface_hub, which reads its address once."""

import atexit
import os
import tempfile
from pathlib import Path

from hub_server import HubServer

scratch = tempfile.TemporaryDirectory(prefix="hf_relstitch-hub-")
atexit.register(scratch.cleanup)
server = HubServer(Path(scratch.name), tokens={"hf_alice": "alice", "hf_bob": "bob"})
os.environ |= {
    "HF_ENDPOINT": server.url,
    "HF_HOME": str(Path(scratch.name, "home")),
    "HF_TOKEN": "hf_alice",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
