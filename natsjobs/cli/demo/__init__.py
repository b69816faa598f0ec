"""``natsjobs demo``: the main job in one command, with real processes, real input and a real verdict.

``command`` is the command; ``play`` the script of what happens; ``actors`` the processes it happens to, whose own
code is ``roles``; ``ledger`` the verdict; ``screen`` what people see; ``source`` the input.
"""
