"""Steps that run a UNet's top level alone, over features of the last full step (DeepCache, arXiv:2312.00858)."""
