"""`python -m shardsieve` is the program."""

from shardsieve.cli import main

if __name__ == "__main__":
    main()
