"""How mollification gets into timm: `register` replaces a function, `loader` wraps what it returns, `autoload` calls."""
