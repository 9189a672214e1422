"""`python -m pycooldown.cli`, the same as `python -m pycooldown`."""

from pycooldown.cli import main

if __name__ == "__main__":
    main()
