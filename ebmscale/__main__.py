"""`python -m ebmscale` is the `ebmscale` command."""

from ebmscale.cli import main

if __name__ == "__main__":
    main()
