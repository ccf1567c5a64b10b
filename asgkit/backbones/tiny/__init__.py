"""The tiny family: unified models of about a million parameters that the kit itself trains and ships."""
