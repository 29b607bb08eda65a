"""`python -m modelsupd` is the command `modelsupd`."""

from modelsupd.cli import main

if __name__ == "__main__":
    main()
