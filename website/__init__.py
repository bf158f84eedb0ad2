"""The documentation site: what MkDocs builds from docs/ and from the sources (``make docs``)."""
