// Puts the pieces together, loads the script and what it requires, runs it, and sends what it returns.
(function main(host, order, body, pieces) {
  'use strict';
  const { track, idle, complain } = pieces.base(host, order.limits);
  const { req, res, answer } = pieces.http(host, order.asked, body);
  const { tenantry, stripe, shared } = pieces.tenantry(host, track, order.file);
  const { metadata } = order;
  const secrets = Object.freeze(order.secrets);
  const loaded = new Map();

  function requireFrom(from) {
    return function require(name) {
      const [kind, found] = host.resolve(from, String(name));
      if (kind === 'builtin') return builtin(found);
      const key = kind + found;
      if (loaded.has(key)) return loaded.get(key).exports;
      const module = { exports: {}, id: found, filename: found };
      loaded.set(key, module);
      try {
        if (kind === 'json') module.exports = JSON.parse(host.text(found));
        else if (host.isModule(found)) module.exports = host.load(found);
        else host.library(found).call(module.exports, module, module.exports, requireFrom(found));
      } catch (error) {
        loaded.delete(key);
        throw error;
      }
      return module.exports;
    };
  }
  const timers = { setTimeout, clearTimeout, setInterval, clearInterval, setImmediate, clearImmediate, queueMicrotask };
  const own = { console, timers, tenantry, stripe, shared };
  function builtin(name) {
    if (own[name]) return own[name];
    const found = host.load(name);
    return found.default ?? found;
  }

  Object.assign(globalThis, { req, res, metadata, shared, secrets, tenantry, stripe, require: requireFrom(order.file), global: globalThis });
  Object.defineProperty(globalThis, '__own', { value: own });
  Object.defineProperty(globalThis, '__require', { value: (file) => requireFrom('')('./' + file) });

  async function call(handler) {
    return typeof handler === 'function' ? handler(req, res) : handler;
  }
  async function run(script) {
    const module = { exports: {} };
    let value;
    if (script) {
      value = await script.call(module.exports, req, res, metadata, shared, console, requireFrom(order.file), module, module.exports);
      const handler = typeof module.exports === 'function' ? module.exports : module.exports?.default;
      if (value === undefined && handler !== undefined) value = await call(handler);
    } else {
      const [ready, space] = host.main();
      await ready;
      value = await call(space.default);
    }
    complain();
    await answer(value, idle);
    complain();
  }
  return run;
})
