"""F3, the configuration edge: one YAML file and the environment become model values.

Here: the file's form (schema.py nests the policies of model/policy.py, which hold every default), loading with every
mistake told at once, JSON Schema, the generated reference, and differences in words. Not here: applying it (app.py).
May import: ports, model, pydantic, yaml. To add a tunable: one field in model/policy.py, and its line in the sample.
"""
