"""How Sphinx builds the site; `tools/build_site.py` gathers what it builds from."""

import kdlab

project = "kdlab"
author = "the kdlab contributors"
release = kdlab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_parts"]
exclude_patterns = ["**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "kdlab"
html_favicon = "_static/icon.svg"
pygments_dark_style = "github-dark"  # of furo's accessible-pygments: no underlined imports
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # of sphinx_parts: MathJax would be fetched from another host
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

# lessons are committed executed; a build only shows their outputs
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "literal"  # single backticks in docstrings
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
