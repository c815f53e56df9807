"""Pure facts and rules of the domain; no input or output here."""
