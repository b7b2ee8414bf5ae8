"""`python -m jaxcyto`: the command line where the `jaxcyto` script is not on the path."""

from jaxcyto.cli import main

if __name__ == "__main__":
    main(prog_name="jaxcyto")
