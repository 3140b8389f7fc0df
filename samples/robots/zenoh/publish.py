"""What a robot sees and hears, on a Zenoh bus: one process; `subscribe.py` is the other.

    python samples/robots/zenoh/publish.py --camera 0 & python samples/robots/zenoh/subscribe.py

Every event goes to `robot/eyes/<type>` as JSON. Peers meet over TCP on loopback, without a router and without
multicast; give `--listen tcp/0.0.0.0:7447` for other machines. Needs `pip install "edgemm[sinks]"`. From the command
line the same is `edgemm run --camera 0 --sink "zenoh://robot/eyes?listen=tcp/127.0.0.1:7447&scouting=false"`.
"""

from __future__ import annotations

import argparse

import edgemm


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--camera", default="0", help="what edgemm's --camera takes, such as a film")
    parser.add_argument("--listen", default="tcp/127.0.0.1:7447", help="where other peers find this one")
    parser.add_argument("--bundle", help="by default edgemm's own")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="by default for ever")
    options = parser.parse_args()
    bus = f"zenoh://robot/eyes?listen={options.listen}&scouting=false"
    with (
        edgemm.load(options.bundle) as model,
        edgemm.stream(model, camera=options.camera, duration_s=options.duration, sinks=[bus]) as live,
    ):
        live.wait()


if __name__ == "__main__":
    main()
