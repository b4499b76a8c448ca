"""kdlab: learn knowledge distillation by trying it.

The floors, lowest first (a file imports only from floors below its own):
``losses, models, datasets`` → ``distillers, metrics`` → ``training`` → ``compression`` → ``plots``
→ ``explorers`` → ``exercises`` → ``lab`` → ``cli``.
"""

__version__ = "0.1.0"
