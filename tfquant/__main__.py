"""`python -m tfquant`: the command, where its script is not on the path."""

import tfquant_cli

if __name__ == "__main__":
    tfquant_cli.run()
