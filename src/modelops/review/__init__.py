"""What a bundle is, brings along, did and tried to do: from traces and files to facts, findings and a report.

Nothing here runs code of a bundle, or touches the machine but to read; see `commands/review.py` for who does.
"""
