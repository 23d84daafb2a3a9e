"""``python -m fal``: the ``fal`` command."""

from fal.cli import main

if __name__ == "__main__":
    main()
