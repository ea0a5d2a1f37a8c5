"""The `ebmscale` command, also as `python -m ebmscale`."""

import sys

from ebmscale.stop import EXIT_CODE, asked_by, hear_signals


def main() -> None:
    """The program. Signals are heard before anything slow is imported."""
    hear_signals()
    try:
        from ebmscale.cli import main as run_command  # noqa: PLC0415

        run_command()
    except KeyboardInterrupt as error:
        print(f"stopped: interrupted by {asked_by(error)}", file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
