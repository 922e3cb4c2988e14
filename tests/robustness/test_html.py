"""The page of a report: whole in one file, its figures those of the report, and alive in a browser."""

import dataclasses
import json
import math
import re
import shutil
import time
from html import unescape

import numpy as np
import pytest
from support.reports import cell, empty, made, mollified

from timm_molly.cli import main
from timm_molly.robustness import figures, html
from timm_molly.robustness.compare import compare
from timm_molly.robustness.conditions import TEMPERATURES
from timm_molly.robustness.report import Bins, Scaled, Temperatures

pytest.importorskip('bokeh')

# Bokeh draws in shadow roots, which no selector reaches through.
DEEP = """
const found = [];
const walk = node => {
  for (const child of node.querySelectorAll('*')) {
    if (child.matches(arguments[0])) found.push(child);
    if (child.shadowRoot) walk(child.shadowRoot);
  }
};
walk(document);
"""


def report(scale=1.0, **model):
    places = [('clean', 0), *((name, s) for name in ('shot_noise', 'fog', 'sparkles') for s in (1, 2, 3))]
    return made(cells={place: cell(scale * (0.05 + 0.01 * i)) for i, place in enumerate(places)}, **model)


def documents(page):
    """What Bokeh is told to draw."""
    (text,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def strings(value):
    if isinstance(value, dict):
        return [found for each in value.values() for found in strings(each)]
    if isinstance(value, list):
        return [found for each in value for found in strings(each)]
    return [value] if isinstance(value, str) else []


def dicts(value):
    """Every dict in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] * isinstance(value, dict) + [found for each in inner for found in dicts(each)]


def lists(value):
    """Every list in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] * isinstance(value, list) + [found for each in inner for found in lists(each)]


def test_the_page_is_one_file_that_asks_for_nothing():
    page = html.page([report()], ['net'])
    assert len(page.encode()) < 3 * 2**20
    assert '<script src' not in page
    outside = re.sub(r'(<script[^>]*>).*?</script>', r'\1', page, flags=re.DOTALL)
    assert not re.findall(r'\b(?:src|href)=|@import|url\(', outside)


def test_each_cell_says_its_figures_on_hover():
    one = report()
    said = strings(documents(html.page([one], ['net'])))
    for (name, _), each in one.cells.items():
        assert name in said
        if name != 'clean':
            assert {f'{100 * each.error:.1f}', f'{each.nll:.3f}', f'{each.ece:.3f}', f'{each.aurc:.3f}'} <= {*said}


def test_a_comparison_begins_with_means_and_their_differences():
    a, b = report(), report(2)
    texts = map(unescape, strings(documents(html.page([a, b], ['a', 'b']))))
    said = next(text for text in texts if '<table>' in text)
    rows = {row[0]: row[1:] for row in (re.findall(r'>([^<]*)</t[hd]>', line) for line in said.split('</tr>')[:-1])}
    assert rows[''][:3] == ['error % A', 'error % B', 'B - A']
    for name, of in (('clean', (a.clean, b.clean)), ('mean of common (2 of 15)', (a.mean, b.mean))):
        one, two = (100 * each.error for each in of)
        assert rows[name][:3] == [f'{one:.1f}', f'{two:.1f}', f'{two - one:+.1f}']
    assert 'fog' not in rows
    for reports in ([a, b], [a]):
        said = ' '.join(strings(documents(html.page(reports, ['a', 'b'][: len(reports)]))))
        assert ('can be chance' in said) == (len(reports) > 1)


def test_temperatures_are_on_the_page():
    scaled = {'clean': Scaled(0.512, 0.011), 'trained': Scaled(0.634, 0.022)}
    cells = {place: dataclasses.replace(each, scaled=scaled) for place, each in report().cells.items()}
    one = dataclasses.replace(report(), cells=cells, temperatures=Temperatures(1.5, 2.25, 'molly-b4', 'train', 100))
    for reports, begin in (([one], ''), ([report(), one], 'B: ')):
        said = unescape(' '.join(strings(documents(html.page(reports, ['a', 'b'][: len(reports)])))))
        assert f'>{begin}After one temperature, fitted on 100 images of split train: T1 = 1.500' in said
        (table,) = re.findall(r'</p>[^/]*<table>.*?</table>', said)
        rows = {
            row[0]: row[1:] for row in (re.findall(r'>([^<]*)</t[hd]>', line) for line in table.split('</tr>')[:-1])
        }
        after = ['0.512', '0.011', '0.634', '0.022']
        assert rows['mean of common (2 of 15)'] == [f'{one.mean.nll:.3f}', f'{one.mean.ece:.3f}', *after]
        assert rows['clean'][2:] == after
        assert 'fog' not in rows


def test_a_figure_is_rounded_one_way():
    found = documents(html.page([made(cells={('clean', 0): cell(0.1), ('fog', 1): cell(0.8025)})], ['net']))
    assert '80.2' in strings(found)  # of the heat map
    assert [10.0, 80.2] in lists(found)  # of the table


def test_columns_that_are_many_have_whole_numbers_and_few_are_narrow():
    def texts(of):
        plot = html._heat_map(of, '', 1.0)
        return plot.renderers[-1].data_source.data['text'], plot.max_width

    of = {('noise', t): cell(0.123) for t in TEMPERATURES}
    many, wide = texts(made({'kind': 'mollification', 'roles': 'n', 'seed': 1}, of))
    assert all(re.fullmatch(r'\d+', text) for text in many)
    few, narrow = texts(made(cells={('fog', 3): cell(0.123)}))
    assert list(few) == ['12.3']
    assert narrow < 400 < wide


def test_a_bin_of_few_images_is_a_small_point():
    images = (*[0.0] * 9, 9.0, 10.0, 20.0, 70.0, 0.0, 100.0)  # those of 9 are not shown
    bins = Bins(images, tuple(n / 2 for n in images), tuple(0.8 * n for n in images))
    shown = made(cells={('fog', 1): dataclasses.replace(cell(0.1, images=200), bins=bins)})
    plot = html._reliability(html._lines([shown], ['']))
    (points,) = (each.data_source.data for each in plot.renderers if getattr(each.glyph, 'size', None) == 'size')
    assert [*points['images']] == [10, 20, 70, 100]
    areas = (np.asarray(points['size']) - 3) ** 2  # above that of the smallest point
    np.testing.assert_allclose(areas / areas.sum(), [0.05, 0.1, 0.35, 0.5])
    axes = figures.blank(3, 3).subplots()
    figures._reliability_panel(axes, 'fog', shown.cells.values())
    assert [line.get_xdata().tolist() for line in axes.lines[1:]] == [pytest.approx(points['x'])]  # after the diagonal


def test_names_are_text_and_no_html():
    page = html.page([report(), report(2)], ['<script>alert(1)</script>', 'b & c'])
    assert '<script>alert(1)' not in page
    # Bokeh escapes the text of its documents once more, and takes that back in the browser.
    assert any('&lt;script&gt;alert(1)' in unescape(text) for text in strings(documents(page)))


@pytest.mark.parametrize(
    'reports',
    [
        [mollified()],
        [mollified(), mollified()],
        [made(cells={('clean', 0): cell(0.1), ('fog', 1): empty()})],
        [made(cells={('fog', 1): cell(0.1, aurc=math.nan)})],
        [report()] * 8,
    ],
    ids=['mollification', 'two of it', 'not finite', 'without clean images', 'eight'],
)
def test_every_kind_of_report_has_a_page(reports):
    assert documents(html.page(reports, [f'net {i}' for i in range(len(reports))]))


def test_reports_and_comparisons_are_saved_as_pages(tmp_path, capsys):
    for name, scale in (('a', 1), ('b', 2)):
        report(scale, name=name).save(tmp_path / name)
        assert (tmp_path / name / 'report.html').is_file()
    output = tmp_path / 'out.html'
    assert main(['compare', str(tmp_path / 'a'), str(tmp_path / 'b'), '-o', str(output)]) == 0
    assert f'wrote {output}' in capsys.readouterr().out
    assert output.read_text().startswith('<!DOCTYPE html>')
    assert not (tmp_path / 'compare.md').exists()


def test_a_place_that_is_missing_is_named_as_it_was_given(tmp_path, capsys):
    for name, scale in (('a', 1), ('b', 2)):
        report(scale, name=name).save(tmp_path / name)
    output = tmp_path / 'missing' / 'out.html'
    assert main(['compare', str(tmp_path / 'a'), str(tmp_path / 'b'), '-o', str(output)]) == 2
    assert capsys.readouterr().err.endswith(f'cannot write {output}: No such file or directory\n')


def test_severities_that_were_not_measured_are_no_ticks_and_one_makes_no_line():
    for severities in ((1, 2, 3), (1, 3), (3,)):
        places = [('clean', 0), *(('fog', s) for s in severities)]
        page = html.page([made(cells={place: cell(0.1) for place in places})], ['net'])
        found = documents(page)
        ticks = [each['ticks'] for each in dicts(found) if 'ticks' in each]
        assert ([0, *severities] in ticks) == (len(severities) > 1)
        assert any('mean error % by severity' in text for text in strings(found)) == (len(severities) > 1)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'bokeh.embed', None)
    with pytest.raises(ValueError, match=r'a page of HTML needs more: pip install "timm-molly\[robustness\]"'):
        html.page([report()], ['net'])


@pytest.fixture
def browser():
    """Debian's chromium, without a window."""
    if not (shutil.which('chromium') and shutil.which('chromedriver')):
        pytest.skip('needs chromium and chromedriver')
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    quiet = 'headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking'
    for flag in f'{quiet} disable-component-update disable-sync window-size=1300,1600'.split():
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    yield driver
    driver.quit()


def wait(ask, seconds=20):
    end = time.monotonic() + seconds
    while not (found := ask()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize('width', [1300, 480])
def test_in_a_browser_it_shows_figures_on_hover_and_sorts(browser, tmp_path, width):
    from selenium.webdriver.common.action_chains import ActionChains

    def deep(selector, get):
        return browser.execute_script(f'{DEEP} return found.map(each => {get});', selector)

    a, b = report(), report(2)
    compare([a, b], ['first', 'second']).save_html(tmp_path / 'compare.html')
    browser.set_window_size(width, 1600)
    browser.get((tmp_path / 'compare.html').as_uri())
    assert wait(lambda: deep('.slick-row', 'each.innerText'))

    canvas = deep('.bk-Figure', 'each')[0]
    box = browser.execute_script('const r = arguments[0].getBoundingClientRect(); return [r.width, r.height];', canvas)
    assert deep('.bk-Figure', 'each.getBoundingClientRect().right <= innerWidth + 1') == [True] * 4
    # Rightmost in the middle row of the first map: fog at severity 3, of nine corrupted cells the sixth.
    ActionChains(browser).move_to_element_with_offset(canvas, int(0.42 * box[0]), -8).perform()
    (said,) = wait(lambda: [text for text in deep('.bk-Tooltip', 'each.shadowRoot.textContent') if 'fog' in text])
    fog = a['fog', 3]
    for value in ('fog 3', f'{100 * fog.error:.1f}', f'{fog.nll:.3f}', f'{fog.ece:.3f}'):
        assert value in said

    def column(number):
        cells = deep(f'.slick-cell.l{number}', '[each.getBoundingClientRect().top, each.innerText]')
        return [text for _, text in sorted(cells)]

    errors = column(2)
    assert errors[:2] == ['5.0', '6.0']
    heads = deep('.slick-header-column', 'each')
    for _ in range(2):  # up, then down
        heads[2].click()
        time.sleep(0.5)
    assert column(2)[:2] == [f'{100 * a["sparkles", 3].error:.1f}', f'{100 * a["sparkles", 2].error:.1f}']

    assert [entry for entry in browser.get_log('browser') if entry['level'] != 'INFO'] == []
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = [each['params']['request']['url'] for each in events if each['method'] == 'Network.requestWillBeSent']
    assert [url for url in asked if not url.startswith('data:')] == [(tmp_path / 'compare.html').as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize('width', [1300, 480])
def test_sentences_break_at_the_window_and_tables_scroll_in_it(browser, tmp_path, width):
    (tmp_path / 'page.html').write_text(html.page([report(), report()], ['a', 'b'], 'Many words. ' * 40))
    browser.set_window_size(width, 1600)
    browser.get((tmp_path / 'page.html').as_uri())
    right = f'{DEEP} return found.map(each => each.getBoundingClientRect().right);'
    assert wait(lambda: browser.execute_script(right, 'p'))
    assert max(browser.execute_script(right, 'p')) <= width
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width


@pytest.mark.slow
@pytest.mark.parametrize('width', [1300, 480])
def test_the_table_is_as_long_as_its_cells(browser, tmp_path, width):
    (tmp_path / 'page.html').write_text(html.page([made()], ['net']))
    browser.set_window_size(width, 1600)
    browser.get((tmp_path / 'page.html').as_uri())

    def shown():
        get = '[each.clientHeight >= each.scrollHeight, each.clientHeight, each.offsetHeight]'
        return browser.execute_script(f'{DEEP} return found.map(each => {get});', '.slick-viewport')

    assert wait(shown)
    assert all(whole for whole, *_ in shown())
    assert max(height for _, height, _ in shown()) >= 25 * len(made().cells)
    assert width == 480 or all(inner == outer for _, inner, outer in shown())  # no scroll bar where all of it fits
