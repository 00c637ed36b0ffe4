"""The contract of defenses and scorers as rules that anybody's can be held to (``harness conformance``)."""
