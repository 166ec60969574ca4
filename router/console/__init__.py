"""The parts of the command `pointsman` (router/cli.py): talking to a running router, and showing what it says.

Here: addresses and tokens from options, environment or a running `pointsman dev`; calls to AdminService; the status
view; the SQL prompt and its output. Not here: anything that the router itself runs. Like app.py it may see all floors,
and nothing but cli.py imports it. To add a command: a function in cli.py, its work in a file here.
"""
