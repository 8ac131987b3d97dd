"""`python -m heartbeat` is the command `heartbeat`."""

from heartbeat.cli import main

if __name__ == "__main__":
    main()
