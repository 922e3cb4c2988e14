"""How mollification gets into timm: `register` replaces one function, `loader` wraps what it returns, `autoload` does it."""
