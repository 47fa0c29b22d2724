"""Files of measurements: layouts told by columns, records kept as they are, broken files refused briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import rows
from planner.errors import EnvironmentFailed, UsageError

DATA = Path(__file__).parent / "data" / "rows"


@pytest.mark.parametrize(
    ("name", "layout"),
    [("speed", "speed"), ("memory", "memory"), ("serving", "serving"), ("llamacpp_memory", "llamacpp")],
)
def test_each_layout_is_recognised_by_its_columns(name: str, layout: str) -> None:
    file = rows.read(DATA / f"{name}.csv")
    assert file.layout == layout
    assert len(file.records) > 20


def test_column_order_and_extra_columns_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("heldout,metric,engine,input_tokens,quant,model_canonical\n1,decode_tps,vllm,0,BF16,x\n")
    file = rows.read(path)
    assert file.layout == "speed"
    assert file.records[0].fields["engine"] == "vllm"
    assert file.records[0].fields["heldout"] == "1"
    assert file.records[0].fields["notes"] == ""  # a column the layout reads but the file lacks is blank


def test_a_record_keeps_its_text_even_with_quotes_and_line_ends_inside(tmp_path: Path) -> None:
    body = 'a,"b ""x""\n second line, with comma",vllm,q,decode_tps,1'
    path = tmp_path / "rows.csv"
    path.write_text("id,notes,engine,quant,metric,input_tokens,model_canonical\n" + body + ",m\n")
    (record,) = rows.read(path).records
    assert record.text == body + ",m"
    assert record.fields["notes"] == 'b "x"\n second line, with comma'
    assert record.line == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"a,b,c\n1,2,3\n", "no known layout"),
        (
            b"engine,model_canonical,quant,metric,input_tokens\nvllm,m,q,decode_tps\n",
            "4 fields where the header has 5",
        ),
        (b'engine,model_canonical,quant,metric,input_tokens\n"vllm,m,q,decode_tps,1\n', "never closes"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"engine,engine,model_canonical,quant,metric,input_tokens\na,b,c,d,e,f\n", "`engine` twice"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=sentence) as caught:
        rows.read(path)
    assert "\n" not in caught.value.message


def test_a_missing_file_is_a_matter_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="cannot read"):
        rows.read(tmp_path / "none.csv")


fields = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\x00", exclude_categories=("Cs",)), max_size=12
)


@given(st.lists(st.lists(fields, min_size=3, max_size=3), min_size=1, max_size=5))
def test_splitting_and_parsing_give_back_what_csv_wrote(table: list[list[str]]) -> None:
    import csv
    import io

    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(table)
    here = Path("x.csv")
    found = [rows.fields(text, here, line) for line, text in rows.split(stream.getvalue(), here)]
    assert found == table
