#!/usr/bin/env bash
# Build wheel and sdist into dist/. Then install each into an empty environment and use it in an empty
# folder: the command's help, a short run on the digits, the README's Python example.
#
#   [UV=uv] [PYTHON=python3] [OPTIONS="--constraint requirements.lock"] scripts/check_dist.sh
#
# OPTIONS go to `uv pip install`; without them the newest versions are taken.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv} python=${PYTHON:-python3}
unset PYTHONPATH VIRTUAL_ENV
rm -rf dist
"$uv" build --quiet --out-dir dist .
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck disable=SC2016  # backticks of Markdown
awk '/^```python$/ {on = 1; next} /^```$/ {on = 0} on' README.md >"$folder/example.py"

for file in dist/*.whl dist/*.tar.gz; do
	echo "== $file"
	rm -rf "$folder/venv" "$folder/empty"
	"$uv" venv --quiet --python "$python" "$folder/venv"
	# shellcheck disable=SC2086  # several options in one variable are meant to be split
	"$uv" pip install --quiet --python "$folder/venv/bin/python" ${OPTIONS:-} "$file"
	mkdir "$folder/empty"
	(
		cd "$folder/empty"
		"$folder/venv/bin/pai" --help >help.txt
		grep -q 'scorer: .*hts' help.txt
		"$folder/venv/bin/pai" scorer=snip training.epochs=1 logger=none hydra.run.dir=run | tail -n 3
		grep -q '"status": "completed"' run/record.json
		"$folder/venv/bin/python" "$folder/example.py"
		"$folder/venv/bin/python" -c 'import pai; print(pai.__file__, len(pai.available_scorers()))'
	)
done
ls -l dist
