"""``python -m omniq``: the command line."""

from omniq.cli import main

if __name__ == "__main__":
    main()
