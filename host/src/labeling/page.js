// The page of `host label`: one picture, one key, the next picture.
'use strict';

/** Keys of the classes; N, S, U and X are taken. */
const KEYS = '123456789abcdefghijklmopqrtvwyz';
/** How often, in ms, it is looked for a server that has gone. */
const RETRY = 2000;

const $ = (id) => document.getElementById(id);
const token = document.querySelector('meta[name=token]').content;
let state = null;
/** While something is on its way, keys mean nothing: they were meant for the picture that is seen. */
let busy = true;
/** Number of the picture that is seen, or known not to be showable; nobody decides on what was not seen. */
let seen = null;
let link = true;

// Words.

const percents = new Intl.NumberFormat(undefined, { style: 'percent' });
const percent = (value) => value > 0 && value < 0.005 ? '<' + percents.format(0.01)
  : value < 1 && value >= 0.995 ? '>' + percents.format(0.99) : percents.format(value);
const add = (parent, tag, name = '', text = '') => {
  const node = parent.appendChild(document.createElement(tag));
  node.className = name;
  node.textContent = text;
  return node;
};
const tell = (words) => {
  // The same words twice are news as well.
  $('notice').textContent = '';
  $('notice').hidden = !words;
  $('notice').textContent = words ?? '';
};

// The server.

/** Asks, shows what comes, and gives what went wrong. */
async function ask(order) {
  busy = true;
  show();
  let trouble = null;
  try {
    const answer = await fetch(order ? '/do' : '/state', !order ? { cache: 'no-store' } : {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'X-Vgg-Edge-Token': token },
      body: JSON.stringify(order),
    });
    if (answer.ok) {
      ({ state, trouble } = await answer.json());
    } else {
      trouble = (await answer.text()).trim();
    }
    link = true;
  } catch {
    link = false;
    trouble = 'host label cannot be reached; nothing is moved until it is back.';
    setTimeout(ask, RETRY);
  }
  busy = !link;
  tell(trouble);
  show();
  return trouble;
}

/** Does something with the picture that is seen. */
async function act(verb, more = {}) {
  const { item } = state ?? {};
  if (busy || !item || seen !== item.id) return;
  const words = more.class ?? (verb === 'skip' ? 'Skipped' : 'Rejected');
  const trouble = await ask({ [verb]: { id: item.id, ...more } });
  if (trouble) return;
  $('said').textContent = `${words}. ` + (state.item ? `Next: ${state.item.suggestion ?? state.item.file}` : 'All done');
}

const actions = {
  accept() {
    if (state?.item?.suggestion) act('sort', { class: state.item.suggestion });
  },
  skip: () => act('skip'),
  reject: () => act('reject'),
  async undo() {
    if (busy || !state.steps || await ask({ undo: {} })) return;
    $('said').textContent = `Undone. ${state.item?.suggestion ?? state.item?.file ?? ''}`;
  },
  new() {
    if (busy) return;
    $('name').value = '';
    $('wrong').textContent = '';
    $('dialog').querySelector('label').textContent = state.item ? 'Name; this picture goes into it' : 'Name';
    $('dialog').showModal();
  },
  again() {
    if (!busy && state.skipped) ask({ again: {} });
  },
};

// What is shown.

let shown = null;
const next = new Image();

function showPicture() {
  const { item } = state;
  const id = item?.id ?? null;
  if (id === shown) return;
  shown = id;
  seen = null;
  const picture = $('picture');
  picture.hidden = true;
  if (item) {
    picture.alt = `Picture ${item.file}`;
    picture.src = `/picture/${id}`;
  } else {
    picture.removeAttribute('src');
  }
  $('veil-title').textContent = item ? 'Loading' : '';
  $('veil-text').textContent = '';
  // Most pictures are there when their turn comes.
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
  let words = '';
  try {
    const answer = await fetch(`/picture/${id}`, { cache: 'no-store' });
    words = answer.ok ? 'The file is damaged.' : (await answer.text()).trim();
    // It may have gone, which the state tells.
    if (answer.status === 404) return void await ask();
  } catch {
    return void await ask();
  }
  if (id !== shown) return;
  seen = id;
  $('veil-title').textContent = 'This picture cannot be shown';
  $('veil-text').textContent = words;
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
  showPicture();
  const left = open + skipped;
  $('bar').max = total;
  $('bar').value = total - left;
  $('count').textContent = left ? `${total - left} of ${total} · ${left} left` : `${total} of ${total}`;
  document.title = `${left} left · vgg-edge label`;
  $('file').textContent = item?.file ?? state.folder;
  const time = item?.time ? new Date(item.time) : null;
  const words = { unsure: 'edge was unsure', changed: 'the label changed' };
  const details = [
    time && !Number.isNaN(time.getTime()) ? time.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' }) : item?.time,
    item?.source, words[item?.reason] ?? item?.reason,
  ];
  $('detail').textContent = details.filter(Boolean).join(' · ');
  $('words').textContent = !item ? '' : !item.label ? 'edge said nothing of it'
    : `edge said ${item.label}` + (item.scores?.[item.label] !== undefined ? `, ${percent(item.scores[item.label])}` : '');

  const idle = busy || !item || seen !== item.id;
  const items = classes.map(({ name, count }, index) => {
    const { item: node, button, number, score, value } = classButton(name, index);
    const top = name === item?.suggestion;
    const given = item?.scores && Object.hasOwn(item.scores, name) ? item.scores[name] : null;
    button.className = top ? 'top' : '';
    // Not `disabled`, which takes the focus away.
    button.ariaDisabled = String(idle);
    number.textContent = count;
    number.title = `${count} pictures in it`;
    button.ariaLabel = `${name}, ${count} in it` + (given === null ? '' : `, score ${percent(given)}`) + (top ? ', suggested' : '');
    score.hidden = given === null;
    value.fill.style.width = `${(given ?? 0) * 100}%`;
    value.text.textContent = given === null ? '' : percent(given);
    return node;
  });
  const old = $('classes').children;
  if (items.length !== old.length || items.some((node, i) => old[i] !== node)) $('classes').replaceChildren(...items);

  // At the end the keys keep their place, but have nothing to do.
  $('accept').disabled = !item?.suggestion;
  $('skip').disabled = $('reject').disabled = !item;
  $('undo').disabled = !state.steps;
  if (!item) {
    const told = [`${sorted} sorted`, `${rejected} rejected`, gone && `${gone} gone`, skipped && `${skipped} skipped`];
    $('veil-title').textContent = skipped ? 'Only skipped ones are left' : 'All done';
    $('veil-text').textContent = told.filter(Boolean).join(', ') + (sorted ? `. To train: host train ${state.data} -o head.postcard` : '');
    $('again').textContent = `Look at ${skipped === 1 ? 'it' : `the ${skipped}`} again`;
  } else if (!classes.length && seen === item.id) {
    $('words').textContent = 'no classes yet: press N';
  }
  $('again').hidden = !!item || !skipped;
  $('veil').hidden = !$('picture').hidden;
}

// Keys and clicks.

/** After a click with the mouse or a finger the space bar is free again; who came by Tab keeps the focus. */
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
  // A button that has the focus is pressed by these.
  if (confirms && document.activeElement?.closest('button')) return;
  const verb = confirms ? (state?.item ? 'accept' : 'again') : { s: 'skip', x: 'reject', u: 'undo', n: 'new' }[key];
  const place = key.length === 1 ? KEYS.indexOf(key) : -1;
  if (!verb && place < 0) return;
  event.preventDefault();
  // A key that is held down must not empty the folder.
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
  const trouble = await ask({ new: { id, class: name } });
  if (!trouble || state.item?.id !== id) return $('dialog').close();
  // Said where one looks.
  tell(null);
  $('wrong').textContent = trouble;
};

ask();
