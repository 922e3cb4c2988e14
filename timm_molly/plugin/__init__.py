"""How mollification gets into timm: `autoload` waits for timm, `register` replaces a function, `loader` mollifies."""
