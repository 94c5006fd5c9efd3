#!/usr/bin/env python3
"""Builds engine.pyz."""
import marshal, os, sys, zipfile
def main():
    out = sys.argv[sys.argv.index("-o") + 1] if "-o" in sys.argv else "engine.pyz"
    top = os.path.dirname(os.path.abspath(__file__))
    source = open(os.path.join(top, "engine.py")).read()
    main = "import sys\nimport engine\nsys.exit(engine.main(sys.argv[1:]))\n"
    with open(out + ".new", "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as z:
            z.writestr("__main__.py", main); z.writestr("engine.py", source)
    os.chmod(out + ".new", 0o755); os.rename(out + ".new", out)
main()
