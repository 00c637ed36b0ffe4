"""Cards: YAML files that declare what a researcher may choose; one module per kind of card."""
