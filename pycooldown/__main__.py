"""`python -m pycooldown`: the command line."""

from pycooldown.cli import main

if __name__ == "__main__":
    main()
