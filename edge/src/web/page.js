// The page of `edge run --http`: the state arrives as server-sent events, images are fetched.
'use strict';

/** Bars that are shown, unless all are requested. */
const BARS = 8;
/** Events that are kept. */
const EVENTS = 200;
/**
 * Silence, in ms, after which a connection counts as broken; the server sends a state every few
 * seconds at least.
 */
const SILENCE = 10_000;
/** Temperature from which a Raspberry Pi slows itself down. */
const HOT = 80;

const $ = (id) => document.getElementById(id);
const page = document.documentElement;
let hello = null;
let state = null;

// Text and numbers.

const set = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
const none = (value) => value === null || value === undefined;
const formats = {};
const number = (value, digits = 0) => {
  if (none(value)) return '–';
  formats[digits] ??= new Intl.NumberFormat(undefined, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  return formats[digits].format(value);
};
const percents = new Intl.NumberFormat(undefined, { style: 'percent' });
const percent = (value) => {
  if (none(value)) return '–';
  if (value > 0 && value < 0.005) return '<' + percents.format(0.01);
  if (value < 1 && value >= 0.995) return '>' + percents.format(0.99);
  return percents.format(value);
};
const duration = (seconds) => {
  if (none(seconds)) return '–';
  const parts = [seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
  const [d, h, m, s] = parts.map(Math.floor);
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
};
/** A number with its unit. */
const quantity = (id, value, digits, unit) => {
  const text = number(value, digits) + (none(value) ? '' : ' ');
  if ($(id).textContent === (none(value) ? text : text + unit)) return;
  $(id).textContent = text;
  if (!none(value)) add($(id), 'small', unit);
};
const add = (parent, tag, text, name = '') => {
  const node = parent.appendChild(document.createElement(tag));
  node.textContent = text;
  node.className = name;
  return node;
};

// Source and connection.

/** For each state the badge and, unless images arrive, the message over the last one. */
const STATES = {
  streaming: ['Live'],
  opening: ['Opening', 'Opening the source'],
  stalled: ['Stalled', 'No new images', 'The source delivers no frames. This is the last one.'],
  frozen: [
    'Frozen', 'The image does not change',
    'Every frame is the same, byte for byte. Reopening the camera.',
  ],
  lost: ['Source lost', 'Source lost', 'Retrying until it comes back.'],
  ended: ['Ended', 'The source has ended', 'There are no more frames.'],
};
let link = 'connecting';

function showStatus() {
  const source = state?.source;
  let [badge, title = '', text = ''] = STATES[source?.state] ?? [source?.state ?? 'Connecting'];
  let veil = title && 'source';
  page.dataset.link = link;
  page.dataset.badge = source?.state ?? 'connecting';
  if (link === 'broken') {
    page.dataset.badge = link;
    [veil, badge, title, text] = [link, 'Connection lost', 'Connection lost', 'Retrying'];
  } else if (!veil && $('picture').hidden) {
    [veil, title] = ['wait', source ? 'No image yet' : 'Connecting'];
  }
  page.dataset.veil = veil;
  $('notice').hidden = link !== 'broken';
  set($('badge-text'), badge);
  set($('veil-title'), title);
  set($('veil-text'), text);
  set($('source-name'), source?.name ?? '–');
  set($('source-detail'), source?.detail ?? '');
  $('picture').alt = `Newest image of ${source?.name}`;
}

// The result.

let spoken = '';
let spokenAt = 0;

function showAnswer() {
  const { label, score, threshold, scores, still } = state;
  const labels = hello?.labels ?? [];
  const unsure = label === 'unknown' && !labels.includes(label);
  const text = label ?? '–';
  set($('label'), text);
  $('label').className = text.length > 40 ? 'longer' : text.length > 14 ? 'long' : '';
  set($('score'), none(label) || none(score) ? '' : percent(score));
  $('headline').className = none(label) || unsure ? 'value unsure' : 'value';

  const notes = [];
  if (none(label)) {
    const streams = state.source?.state === 'streaming';
    notes.push(streams ? 'Nothing classified yet' : 'No frames to classify');
  } else {
    const best = unsure && scores
      && Object.keys(scores).reduce((a, b) => scores[b] > scores[a] ? b : a);
    if (best) notes.push(`Closest is ${best}`);
    if (threshold > 0) notes.push(`Threshold ${percents.format(threshold)}`);
  }
  set($('words'), notes.join(' · '));
  $('still').hidden = !still;
  const title = none(label) ? 'vgg-edge' : `${label} · vgg-edge`;
  if (document.title !== title) document.title = title;
  // Screen readers announce changes, but not too often.
  if (text !== spoken && Date.now() - spokenAt > 2000) {
    [spoken, spokenAt] = [text, Date.now()];
    const result = unsure ? `Unknown. ${notes[0]}` : `${label}, ${percent(score)}`;
    set($('said'), none(label) ? notes[0] : result);
  }
  showBars(labels, label);
}

const bars = new Map();
let chosen = [];
let chosenAt = 0;
let expanded = false;

function bar(name) {
  if (!bars.has(name)) {
    const item = document.createElement('li');
    add(item, 'span', name).title = name;
    const track = add(item, 'span', '', 'track');
    track.ariaHidden = 'true';
    const [fill, mark] = [add(track, 'i', ''), add(track, 'b', '')];
    bars.set(name, { item, fill, mark, value: add(item, 'span', '') });
  }
  return bars.get(name);
}

function showBars(labels, label) {
  const { threshold, scores } = state;
  // A head that was just replaced may have other labels than those of the last `hello`.
  const replaced = scores && !labels.every((name) => Object.hasOwn(scores, name));
  const names = replaced ? Object.keys(scores) : labels;
  const few = names.length <= BARS;
  const stale = chosen.length !== BARS || !chosen.every((name) => names.includes(name));
  if (few || expanded) {
    chosen = names;
  } else if (stale || Date.now() - chosenAt > 3000
      || names.includes(label) && !chosen.includes(label)) {
    // The best, in the head's order, and chosen again seldom, so that the list does not jump.
    const weight = (name) => name === label ? 2 : scores?.[name] ?? 0;
    const best = new Set(names.toSorted((a, b) => weight(b) - weight(a)).slice(0, BARS));
    chosen = names.filter((name) => best.has(name));
    chosenAt = Date.now();
  }
  const items = chosen.map((name) => {
    const { item, fill, mark, value } = bar(name);
    const score = scores?.[name];
    item.className = name === label ? 'top' : '';
    fill.style.transform = `translateX(${score > 0 ? score * 100 - 100 : -101}%)`;
    mark.hidden = !(threshold > 0);
    mark.style.left = `${threshold * 100}%`;
    set(value, percent(score));
    return item;
  });
  const old = $('bars').children;
  if (items.length !== old.length || items.some((item, i) => old[i] !== item)) {
    $('bars').replaceChildren(...items);
  }
  $('more').hidden = few;
  $('more').ariaExpanded = String(expanded);
  set($('more'), expanded ? 'Show fewer' : `${number(names.length - BARS)} more`);
}

// Metrics and model.

let metricsAt = 0;

function showMetrics() {
  // Numbers that change ten times a second cannot be read.
  if (performance.now() - metricsAt < 400) return;
  metricsAt = performance.now();
  quantity('fps', state.fps, 1, '/s');
  for (const id of ['latency_ms', 'age_ms']) {
    const ms = state[id];
    if (ms >= 9950) quantity(id, ms / 1000, 1, 's');
    else quantity(id, ms, ms < 99.95 ? 1 : 0, 'ms');
  }
  const hot = state.temperature_c >= HOT;
  quantity('temperature_c', state.temperature_c, 0, hot ? '°C, hot' : '°C');
  $('temperature_c').className = hot ? 'hot' : '';
  for (const id of ['frames', 'classified', 'dropped', 'skipped', 'corrupt']) {
    set($(id), number(state[id]));
  }
  set($('collected'), number(state.collected) + (state.collect_full ? ', full' : ''));
  set($('lost'), number(state.source?.lost));
  const memory = state.memory_bytes;
  set($('memory_bytes'), none(memory) ? '–' : `${number(memory / 1e6)} MB`);
  set($('uptime_s'), duration(state.uptime_s));
}

function showModel() {
  const { head, base, head_version, head_key, head_date, val_accuracy } = hello;
  const { labels, size, kernel, threads, edge } = hello;
  for (const [id, full] of [['head', head], ['base', base]]) {
    $(id).disabled = !full;
    $(id).title = full ? `${full}\nClick to copy` : '';
    set($(id), full?.slice(0, 12) ?? '–');
  }
  $('version').hidden = none(head_version);
  set($('head_version'), String(head_version ?? ''));
  $('head_version').title = head_key ? `Signed by key ${head_key}` : '';
  const day = { timeZone: 'UTC', dateStyle: 'medium' };
  set($('head_date'), head_date ? new Date(head_date).toLocaleDateString(undefined, day) : '–');
  set($('val_accuracy'), none(val_accuracy) ? '–' : `${number(val_accuracy * 100, 1)} %`);
  set($('labels'), number(labels.length));
  set($('size'), `${size} × ${size}`);
  set($('kernel'), `${kernel}, ${threads} thread${threads === 1 ? '' : 's'}`);
  set($('edge'), edge);
}

/** Shows the error of the installed head or base. */
function showNote() {
  const { note } = state.model;
  $('model-note').hidden = none(note);
  set($('model-note'), note ?? '');
}

async function copy(id) {
  let result = 'Copied';
  try {
    // The clipboard needs HTTPS, or a browser on the device itself.
    await navigator.clipboard.writeText(hello[id]);
  } catch {
    const area = add(document.body, 'textarea', hello[id], 'hidden');
    area.select();
    if (!document.execCommand('copy')) result = 'Not copied';
    area.remove();
    $(id).focus();
  }
  set($(id), result);
  set($('copied'), result);
  setTimeout(() => {
    set($('copied'), '');
    showModel();
  }, 1500);
}

// Events.

const logged = new Map();

function addEvent({ id, time, kind, text, score }) {
  if (logged.has(id)) return;
  const item = document.createElement('li');
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  const short = { dateStyle: 'short', timeStyle: 'short' };
  const when = today ? date.toLocaleTimeString() : date.toLocaleString(undefined, short);
  add(item, 'time', when).dateTime = time;
  add(item, 'span', kind, `kind ${kind}`);
  add(item, 'span', text, 'text');
  add(item, 'span', none(score) ? '' : percent(score), 'number');
  // They arrive in order.
  $('log').prepend(item);
  logged.set(id, item);
  if (logged.size > EVENTS) {
    const [oldest, node] = logged.entries().next().value;
    node.remove();
    logged.delete(oldest);
  }
  $('all').hidden = logged.size <= 8;
}

// Images.

let shown = null;
let loading = false;

async function loadImage() {
  if (loading || document.hidden || link !== 'live') return;
  if (none(state.picture) || state.picture === shown) return;
  loading = true;
  shown = state.picture;
  const pause = new Promise((done) => setTimeout(done, 100));
  try {
    const signal = AbortSignal.timeout(SILENCE);
    const response = await fetch('/frame.jpg', { cache: 'no-store', signal });
    if (response.ok) {
      const image = $('picture');
      const url = URL.createObjectURL(await response.blob());
      await new Promise((done) => {
        image.onload = image.onerror = done;
        image.src = url;
      });
      URL.revokeObjectURL(url);
      image.hidden = !image.naturalWidth;
      $('stage').style.aspectRatio = `${image.naturalWidth || 4} / ${image.naturalHeight || 3}`;
      showStatus();
    }
  } catch {
    // The events show whether the server is there, and the next image is fetched as usual.
  }
  await pause;
  loading = false;
  loadImage();
}

// The connection.

let events = null;
let heard = 0;
let attempts = 0;
let retry = 0;

function broken(message) {
  if (message || link !== 'broken') {
    const time = state && new Date(state.time).toLocaleTimeString();
    const since = time ? ` The values are from ${time}.` : '';
    set($('notice'), message ?? `Connection lost, retrying.${since}`);
  }
  link = 'broken';
  showStatus();
}

function connect() {
  disconnect();
  const mine = events = new EventSource('/events');
  heard = performance.now();
  const listen = (name, handle) => mine.addEventListener(name, (event) => {
    heard = performance.now();
    handle(JSON.parse(event.data));
  });
  listen('hello', (data) => {
    // Another version of edge may have another page.
    if (hello && hello.edge !== data.edge) location.reload();
    if (hello?.run !== data.run) {
      logged.clear();
      $('log').replaceChildren();
      shown = null;
    }
    hello = data;
    attempts = 0;
    showModel();
  });
  listen('state', (data) => {
    state = data;
    link = 'live';
    showStatus();
    showAnswer();
    showMetrics();
    showNote();
    loadImage();
  });
  listen('log', addEvent);
  mine.onerror = () => {
    broken();
    // The browser retries by itself, unless the server responded with an error.
    if (mine.readyState === EventSource.CLOSED) later();
  };
}

function disconnect() {
  clearTimeout(retry);
  retry = 0;
  events?.close();
  events = null;
}

/** Retries after a while, and finds out why there are no events. */
async function later() {
  retry = setTimeout(connect, Math.min(1000 * 2 ** attempts++, 15_000));
  try {
    const signal = AbortSignal.timeout(SILENCE);
    const { ok, status, body } = await fetch('/events', { cache: 'no-store', signal });
    if (status === 401) {
      broken('This page needs a token: add ?token= and the token to its address.');
    } else if (!ok) {
      broken(`The device responds with error ${status}, retrying.`);
    }
    await body?.cancel();
  } catch {
    // The server is gone, which the page shows already.
  }
}

// An unplugged cable raises no error.
setInterval(() => {
  if (!events || retry || performance.now() - heard < SILENCE) return;
  broken();
  connect();
}, 1000);

// A hidden page receives nothing: a browser allows few connections to a server over all its tabs.
document.onvisibilitychange = () => {
  if (document.hidden) disconnect();
  else if (!events) connect();
};

$('more').onclick = () => {
  expanded = !expanded;
  $('bars').tabIndex = expanded ? 0 : -1; // it scrolls on wide screens
  chosen = [];
  showAnswer();
};
$('all').onclick = () => {
  set($('all'), $('events').classList.toggle('open') ? 'Show fewer' : 'Show all');
};
$('head').onclick = () => copy('head');
$('base').onclick = () => copy('base');
showStatus();
document.onvisibilitychange();
