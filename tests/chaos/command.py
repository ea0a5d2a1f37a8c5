"""The command `tools/chaos`."""

import argparse
import os
import tempfile
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.chaos.leg import Topology
from tests.chaos.plan import Plan, topologies
from tests.chaos.table import to_json, to_markdown
from tests.s3_server import KEY, SECRET, S3Server, missing_programs

SIZES, ZERO_STAGES = (1, 2, 4), (None, 0, 1, 2, 3)


def main(description: str | None) -> int:
    """Runs a campaign as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--fixed", action="store_true", help="one topology throughout")
    mode.add_argument("--topologies", action="store_true", help="another topology at each restart")
    parser.add_argument("--processes", type=int, default=2, help="of --fixed")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="of --fixed: DeepSpeed (default: plain engine)")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="of --topologies")
    parser.add_argument("--faults", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=1280, help="samples")
    parser.add_argument("--out", type=Path, help="folder for chaos.json, chaos.md and the logs of all legs")
    arguments = parser.parse_args()
    if missing := missing_programs():
        parser.error(f"no S3 server: install the Debian packages of {', '.join(missing)}")
    sizes = [int(size) for size in arguments.sizes.split(",")]
    where = (Topology(arguments.processes, arguments.zero),) if arguments.fixed else topologies(sizes, ZERO_STAGES)
    plan = Plan(arguments.faults, arguments.seed, where, arguments.checkpoint_every)
    with tempfile.TemporaryDirectory() as temporary:
        return _run(plan, arguments.out or Path(temporary) / "out", Path(temporary))


def _run(plan: Plan, out: Path, temporary: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    server = S3Server(temporary / "ceph")
    try:
        server.start()
        result = Campaign(plan, out.resolve() / "legs", server, lambda text: print(text, flush=True)).run()
    finally:
        server.stop()
    (out / "chaos.json").write_text(to_json(result))
    (out / "chaos.md").write_text(to_markdown(result))
    print(f"\n{to_markdown(result)}")
    return 0 if result.ok else 1
