// What a script finds everywhere: timers, console, fetch within its bound. `host` is the worker; nothing else reaches it.
(function base(host, bounds) {
  'use strict';

  // How much is under way; a handler that returned nothing is over when this is nothing.
  let busy = 0;
  let waiting = [];
  function done() {
    busy -= 1;
    if (busy === 0) waiting.splice(0).forEach((wake) => wake());
  }
  function track(promise) {
    busy += 1;
    promise.then(done, done);
    return promise;
  }
  async function idle() {
    // Callbacks of what has just ended may begin something new: they run before the next turn.
    for (await host.sleep(0, 0); busy > 0; await host.sleep(0, 0)) {
      await new Promise((wake) => waiting.push(wake));
    }
  }

  // Timers.
  const timers = new Map();
  let last = 0;
  function start(callback, ms, args, again) {
    if (typeof callback !== 'function') throw new TypeError('a timer wants a function');
    const id = ++last;
    const wait = Math.min(Math.max(Number(ms) || 0, 0), 2147483647);
    const timer = { on: true };
    timers.set(id, timer);
    const fire = () => {
      if (!timer.on) return undefined;
      if (!again) timers.delete(id);
      callback(...args);
      return again && timer.on ? host.sleep(id, Math.max(wait, 1)).then(fire) : undefined;
    };
    track(host.sleep(id, wait).then(fire).catch((error) => console.error('Uncaught in a timer:', error)));
    return id;
  }
  function stop(id) {
    const timer = timers.get(Number(id));
    if (!timer) return;
    timer.on = false;
    timers.delete(Number(id));
    host.wake(Number(id));
  }
  globalThis.setTimeout = (callback, ms, ...args) => start(callback, ms, args, false);
  globalThis.setInterval = (callback, ms, ...args) => start(callback, ms, args, true);
  globalThis.setImmediate = (callback, ...args) => start(callback, 0, args, false);
  globalThis.clearTimeout = globalThis.clearInterval = globalThis.clearImmediate = stop;
  globalThis.queueMicrotask = (callback) => {
    Promise.resolve().then(callback).catch((error) => console.error('Uncaught in a microtask:', error));
  };
  AbortSignal.timeout = (ms) => {
    const controller = new AbortController();
    setTimeout(() => controller.abort(new DOMException('The operation timed out.', 'TimeoutError')), ms);
    return controller.signal;
  };

  // Console.
  const say = (level) => (...args) => host.console(level, host.format(...args));
  const began = new Map();
  globalThis.console = {
    log: say('log'), info: say('info'), warn: say('warn'), error: say('error'), debug: say('debug'), dir: (value) => say('log')(value),
    trace: (...args) => say('debug')(...args, '\n' + new Error().stack),
    assert: (holds, ...args) => { if (!holds) say('error')('Assertion failed:', ...args); },
    time: (label = 'default') => { began.set(label, Date.now()); },
    timeEnd: (label = 'default') => say('log')(`${label}: ${Date.now() - (began.get(label) ?? Date.now())} ms`),
  };

  // fetch: so many at once, so many more in the line.
  const fetchNow = globalThis.fetch;
  const line = [];
  let open = 0;
  function turn() {
    if (open < bounds.connections) { open += 1; return Promise.resolve(); }
    if (line.length >= bounds.waiting) {
      return Promise.reject(new TypeError(`fetch: ${bounds.connections} connections are open and ${bounds.waiting} are waiting, which is the most`));
    }
    return new Promise((go) => line.push(go));
  }
  function next() {
    const go = line.shift();
    if (go) go(); else open -= 1;
  }
  globalThis.fetch = (resource, options) => track(turn().then(async () => {
    try {
      return await fetchNow(resource, options);
    } finally {
      next();
    }
  }));

  // Promises that failed and that nobody looks at: told by the engine as they come, printed by `complain`.
  const rejected = new Map();
  Object.defineProperty(globalThis, '__rejected', {
    value: (promise, reason, handled) => {
      if (handled) rejected.delete(promise); else if (rejected.size < 100) rejected.set(promise, reason);
    },
  });
  function complain() {
    for (const reason of rejected.values()) console.error('Unhandled rejection:', reason);
    rejected.clear();
  }

  return { track, idle, complain };
})
