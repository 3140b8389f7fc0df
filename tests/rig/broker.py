"""A real MQTT broker: mosquitto on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess

from tests.live.live_fakes import until
from tests.rig.network import free_port

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Broker:
    """A mosquitto that can be killed and come back on the same port."""

    def __init__(self, folder, *, password=""):
        self.port = free_port()
        self.lines = f"listener {self.port} 127.0.0.1\npersistence false\n"
        self.lines += "user root\n" if os.getuid() == 0 else ""
        if password:
            users = folder / "users"
            subprocess.run([shutil.which("mosquitto_passwd"), "-b", "-c", str(users), "robot", password], check=True)
            self.lines += f"allow_anonymous false\npassword_file {users}\n"
        else:
            self.lines += "allow_anonymous true\n"
        self.config = folder / "mosquitto.conf"
        self.config.write_text(self.lines)
        self.child = None
        self.start()

    def start(self):
        self.child = subprocess.Popen([MOSQUITTO, "-c", self.config], stderr=subprocess.DEVNULL)
        until(self._answers)

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def _answers(self):
        assert self.child.poll() is None, "mosquitto did not start"
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
        except OSError:
            return False
        return True
