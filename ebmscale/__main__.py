"""The `ebmscale` command, also as `python -m ebmscale`."""

import sys

from ebmscale.stop import EXIT_CODE, asked_by, handle_signals


def main() -> None:
    """Runs the program. Signal handlers are installed before the slow imports."""
    handle_signals()
    try:
        from ebmscale.cli import main as run_program  # noqa: PLC0415

        run_program()
    except KeyboardInterrupt as error:
        print(f"stopped: interrupted by {asked_by(error)}", file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
