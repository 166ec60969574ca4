"""A router that is told to reload, or to restart its workers, before it can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from router.devcluster.server import free_port

AT_ONCE = """
import os, signal, sys
from router import cli, interpreter

begin = interpreter.begin

def interrupted():
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGUSR1)
    begin()

interpreter.begin = interrupted
sys.argv = ["pointsman", "serve", "--config", sys.argv[1]]
cli.main()
"""

CONFIG = """
server: {{listen: "127.0.0.1:0", admin_listen: "127.0.0.1:0", metrics_listen: "", watch_s: 0, grace_s: 0.1}}
admin: {{tokens: [env:SECRET]}}
log: {{format: json}}
clusters:
  main:
    control: {{user: control, password: env:SECRET}}
    endpoints: {{n1: {{host: 127.0.0.1, port: {port}}}}}
tenants:
  acme: {{cluster: main, database: acme, login: {{user: acme, password: env:SECRET}}, tokens: [env:OTHER]}}
"""


def test_signals_before_it_serves_do_not_end_it_and_the_reload_is_done(tmp_path: Path):
    file = tmp_path / "pointsman.yaml"
    file.write_text(CONFIG.format(port=free_port()))
    command = [sys.executable, "-c", AT_ONCE, str(file)]
    secrets = {"SECRET": "a-secret", "OTHER": "another"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **secrets}) as serving:
        assert serving.stderr is not None
        told: list[str] = []
        for line in serving.stderr:
            told.append(json.loads(line)["event"] if line.startswith("{") else line)
            if any("serves callers" in one for one in told) and "configuration applied" in told:
                break
        serving.send_signal(signal.SIGTERM)
        serving.stderr.read()
    assert serving.returncode == 0, told
    assert "configuration applied" in told
