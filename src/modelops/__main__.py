"""The command `modelops`, and `python -m modelops`."""


def main() -> None:
    """Run the command line. Ctrl-C while it is imported, which takes a moment, ends it without a word as well."""
    try:
        from modelops.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
