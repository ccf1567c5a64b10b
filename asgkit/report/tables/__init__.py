"""Tables: what was measured and what was published, as rows and as Markdown, LaTeX and HTML."""
