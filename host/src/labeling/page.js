// The page of `host label`: one image, one key, the next image.
'use strict';

/** Keys of the classes; N, S, U and X are used by actions. */
const KEYS = '123456789abcdefghijklmopqrtvwyz';
/** Time, in ms, between two attempts to reach a server that is gone. */
const RETRY = 2000;

const $ = (id) => document.getElementById(id);
const token = document.querySelector('meta[name=token]').content;
let state = null;
/** While a request is pending, keys are ignored: they were meant for the image that is shown. */
let busy = true;
/**
 * Number of the image that is shown, or that cannot be shown; no decision is made on an image
 * before that.
 */
let seen = null;
let link = true;

// Text.

const percents = new Intl.NumberFormat(undefined, { style: 'percent' });
const percent = (value) => value > 0 && value < 0.005 ? '<' + percents.format(0.01)
  : value < 1 && value >= 0.995 ? '>' + percents.format(0.99) : percents.format(value);
const add = (parent, tag, name = '', text = '') => {
  const node = parent.appendChild(document.createElement(tag));
  node.className = name;
  node.textContent = text;
  return node;
};
const notify = (message) => {
  // The same message twice is announced twice.
  $('notice').textContent = '';
  $('notice').hidden = !message;
  $('notice').textContent = message ?? '';
};

// The server.

/** Sends an action, or fetches the state; shows the state and returns the error. */
async function request(action) {
  busy = true;
  show();
  let error = null;
  try {
    const response = await fetch(action ? '/do' : '/state', !action ? { cache: 'no-store' } : {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'X-Vgg-Edge-Token': token },
      body: JSON.stringify(action),
    });
    if (response.ok) {
      ({ state, trouble: error } = await response.json());
    } else {
      error = (await response.text()).trim();
    }
    link = true;
  } catch {
    link = false;
    error = 'host label cannot be reached; nothing is moved until it is back.';
    setTimeout(request, RETRY);
  }
  busy = !link;
  notify(error);
  show();
  return error;
}

/** Performs an action on the image that is shown. */
async function act(verb, more = {}) {
  const { item } = state ?? {};
  if (busy || !item || seen !== item.id) return;
  const done = more.class ?? (verb === 'skip' ? 'Skipped' : 'Rejected');
  if (await request({ [verb]: { id: item.id, ...more } })) return;
  const next = state.item?.suggestion ?? state.item?.file;
  $('said').textContent = `${done}. ` + (next ? `Next: ${next}` : 'All done');
}

const actions = {
  accept() {
    if (state?.item?.suggestion) act('sort', { class: state.item.suggestion });
  },
  skip: () => act('skip'),
  reject: () => act('reject'),
  async undo() {
    if (busy || !state.steps || await request({ undo: {} })) return;
    $('said').textContent = `Undone. ${state.item?.suggestion ?? state.item?.file ?? ''}`;
  },
  new() {
    if (busy) return;
    $('name').value = '';
    $('wrong').textContent = '';
    const label = state.item ? 'Name; this image is moved into it' : 'Name';
    $('dialog').querySelector('label').textContent = label;
    $('dialog').showModal();
  },
  again() {
    if (!busy && state.skipped) request({ again: {} });
  },
};

// Display.

let shown = null;
const next = new Image();

function showImage() {
  const { item } = state;
  const id = item?.id ?? null;
  if (id === shown) return;
  shown = id;
  seen = null;
  const image = $('picture');
  image.hidden = true;
  if (item) {
    image.alt = `Image ${item.file}`;
    image.src = `/picture/${id}`;
  } else {
    image.removeAttribute('src');
  }
  $('veil-title').textContent = item ? 'Loading' : '';
  $('veil-text').textContent = '';
  // Most images are loaded by the time they are shown.
  if (state.next !== null) next.src = `/picture/${state.next}`;
}

$('picture').onload = () => {
  $('picture').hidden = false;
  seen = shown;
  show();
};

$('picture').onerror = async () => {
  const id = shown;
  if (id === null) return;
  let reason = '';
  try {
    const response = await fetch(`/picture/${id}`, { cache: 'no-store' });
    reason = response.ok ? 'The file is damaged.' : (await response.text()).trim();
    // The file may be gone, which the state shows.
    if (response.status === 404) return void await request();
  } catch {
    return void await request();
  }
  if (id !== shown) return;
  seen = id;
  $('veil-title').textContent = 'This image cannot be shown';
  $('veil-text').textContent = reason;
  show();
};

const buttons = new Map();

function classButton(name, index) {
  if (!buttons.has(name)) {
    const item = document.createElement('li');
    const button = add(item, 'button');
    button.type = 'button';
    add(button, 'kbd', '', KEYS[index]?.toUpperCase() ?? '').ariaHidden = 'true';
    if (KEYS[index]) button.setAttribute('aria-keyshortcuts', KEYS[index]);
    add(button, 'span', 'name', name).title = name;
    const number = add(button, 'span', 'number');
    const score = add(button, 'span', 'score');
    const track = add(score, 'span', 'track');
    track.ariaHidden = 'true';
    const value = { fill: add(track, 'i'), text: add(score, 'span', 'value') };
    button.onclick = (event) => {
      release(event);
      act('sort', { class: name });
    };
    buttons.set(name, { item, button, number, score, value });
  }
  return buttons.get(name);
}

function show() {
  if (!state) {
    $('veil-title').textContent = link ? 'Loading' : 'Not connected';
    return;
  }
  const { item, total, open, sorted, rejected, skipped, gone, classes } = state;
  showImage();
  const left = open + skipped;
  $('bar').max = total;
  $('bar').value = total - left;
  const done = `${total - left} of ${total}`;
  $('count').textContent = left ? `${done} · ${left} left` : done;
  document.title = `${left} left · vgg-edge label`;
  $('file').textContent = item?.file ?? state.folder;
  const time = item?.time ? new Date(item.time) : null;
  const medium = { dateStyle: 'medium', timeStyle: 'medium' };
  const reasons = { unsure: 'low score', changed: 'the label changed' };
  const details = [
    time && !Number.isNaN(time.getTime()) ? time.toLocaleString(undefined, medium) : item?.time,
    item?.source, reasons[item?.reason] ?? item?.reason,
  ];
  $('detail').textContent = details.filter(Boolean).join(' · ');
  const score = item?.scores?.[item.label];
  $('words').textContent = !item ? '' : !item.label ? 'not classified by edge'
    : `edge: ${item.label}` + (score !== undefined ? `, ${percent(score)}` : '');

  const idle = busy || !item || seen !== item.id;
  const items = classes.map(({ name, count }, index) => {
    const { item: node, button, number, score, value } = classButton(name, index);
    const top = name === item?.suggestion;
    const given = item?.scores && Object.hasOwn(item.scores, name) ? item.scores[name] : null;
    button.className = top ? 'top' : '';
    // Not `disabled`, which takes the focus away.
    button.ariaDisabled = String(idle);
    number.textContent = count;
    number.title = `${count} images`;
    const details = given === null ? '' : `, score ${percent(given)}`;
    button.ariaLabel = `${name}, ${count} images${details}${top ? ', suggested' : ''}`;
    score.hidden = given === null;
    value.fill.style.width = `${(given ?? 0) * 100}%`;
    value.text.textContent = given === null ? '' : percent(given);
    return node;
  });
  const old = $('classes').children;
  if (items.length !== old.length || items.some((node, i) => old[i] !== node)) {
    $('classes').replaceChildren(...items);
  }

  // At the end the buttons keep their places, but are disabled.
  $('accept').disabled = !item?.suggestion;
  $('skip').disabled = $('reject').disabled = !item;
  $('undo').disabled = !state.steps;
  if (!item) {
    const counts = [
      `${sorted} sorted`, `${rejected} rejected`,
      gone && `${gone} gone`, skipped && `${skipped} skipped`,
    ];
    const train = sorted ? `. To train: host train ${state.data} -o head.postcard` : '';
    $('veil-title').textContent = skipped ? 'Only skipped images are left' : 'All done';
    $('veil-text').textContent = counts.filter(Boolean).join(', ') + train;
    $('again').textContent = `Show ${skipped === 1 ? 'it' : `the ${skipped}`} again`;
  } else if (!classes.length && seen === item.id) {
    $('words').textContent = 'No classes yet: press N';
  }
  $('again').hidden = !!item || !skipped;
  $('veil').hidden = !$('picture').hidden;
}

// Keys and clicks.

/** Frees the space bar after a click by mouse or finger; after Tab a button keeps the focus. */
function release(event) {
  if (event.detail) event.currentTarget.blur();
}

for (const id of Object.keys(actions)) {
  $(id).onclick = (event) => {
    release(event);
    actions[id]();
  };
}

document.onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $('dialog').open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const confirms = key === ' ' || key === 'Enter';
  // These keys press a focused button.
  if (confirms && document.activeElement?.closest('button')) return;
  const verbs = { s: 'skip', x: 'reject', u: 'undo', n: 'new' };
  const verb = confirms ? (state?.item ? 'accept' : 'again') : verbs[key];
  const place = key.length === 1 ? KEYS.indexOf(key) : -1;
  if (!verb && place < 0) return;
  event.preventDefault();
  // A key that is held down must not empty the directory.
  if (event.repeat) return;
  if (verb) actions[verb]();
  else if (state?.classes[place]) act('sort', { class: state.classes[place].name });
};

$('cancel').onclick = () => $('dialog').close();
$('dialog').querySelector('form').onsubmit = async (event) => {
  event.preventDefault();
  if (busy) return;
  const name = $('name').value.trim();
  const id = state.item && seen === state.item.id ? state.item.id : null;
  const error = await request({ new: { id, class: name } });
  if (!error || state.item?.id !== id) return $('dialog').close();
  // The error is shown in the dialog instead.
  notify(null);
  $('wrong').textContent = error;
};

request();
