"""The verbs of the command line, in files by what they act on.

Each file ends with its part of the table: a verb's words and options. What takes long to import, JAX above all, a verb
imports when it runs.
"""
