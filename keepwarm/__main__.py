"""``python -m keepwarm``: the operator's command."""

from keepwarm.cli import main

if __name__ == "__main__":
    main()
