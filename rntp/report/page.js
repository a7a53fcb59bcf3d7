"use strict";
/* Search, sort and filter of thoughts; keys; print. Texts of pages go in by textContent alone. */
(() => {
  const BATCH = 40;
  const MINUS = "\u2212";
  const MISSING = "\u2013";
  const $ = (id) => document.getElementById(id);

  const number = (value) => (value === null ? MISSING : value.toFixed(3).replace("-", MINUS));
  const signed = (value) => (value === null ? MISSING : (value >= 0 ? "+" : "") + number(value));

  function shade(gain, bound) {
    if (gain === null) return "none";
    const level = Math.round(Math.max(-1, Math.min(1, gain / bound)) * 5);
    return level === 0 ? "z" : (level > 0 ? "p" : "n") + Math.abs(level);
  }

  function startExplorer(element) {
    const data = JSON.parse(element.textContent);
    const box = $("explorer");
    const body = $("thought-rows");
    const template = $("thought-row");
    const measures = {
      gain: (t) => t.gain,
      advantage: (t) => t.advantage,
      reward: (t) => t.reward,
      length: (t) => t.length,
      step: (t) => data.places[t.place].step,
    };
    data.schemes.forEach((name, at) => { measures["scheme:" + name] = (t) => t.rewards[at]; });
    // What the search looks through, made once, when somebody first searches.
    let haystacks = null;
    let found = [];
    let shown = 0;

    const bound = (id, missing) => {
      const text = $(id).value.trim();
      const value = Number(text);
      return text === "" || Number.isNaN(value) ? missing : value;
    };

    function haystack(thought) {
      const place = data.places[thought.place];
      return [thought.text, thought.answer, place.name, place.id, place.tail, place.tokens.join("")]
        .join("\n").toLowerCase();
    }

    function select() {
      const words = $("f-text").value.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length && haystacks === null) haystacks = data.thoughts.map(haystack);
      const source = $("f-source") ? $("f-source").value : "";
      const closed = $("f-closed").value;
      const ranges = [
        [measures.step, bound("f-step-low", -Infinity), bound("f-step-high", Infinity)],
        [measures.length, bound("f-length-low", -Infinity), bound("f-length-high", Infinity)],
        [measures[$("f-measure").value], bound("f-low", -Infinity), bound("f-high", Infinity)],
      ].filter(([, low, high]) => low !== -Infinity || high !== Infinity);
      const inside = ([measure, low, high], thought) => {
        const value = measure(thought);
        return value !== null && value >= low && value <= high;
      };
      const by = measures[$("f-sort").value];
      const sign = $("f-order").value === "low" ? 1 : -1;
      found = [];
      data.thoughts.forEach((thought, at) => {
        if (source !== "" && data.places[thought.place].source !== Number(source)) return;
        if (closed !== "" && thought.closed !== (closed === "closed")) return;
        if (!ranges.every((range) => inside(range, thought))) return;
        if (!words.every((word) => haystacks[at].includes(word))) return;
        found.push(at);
      });
      found.sort((a, b) => {
        const x = by(data.thoughts[a]), y = by(data.thoughts[b]);
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return sign * (x - y) || a - b;
      });
    }

    function row(at) {
      const thought = data.thoughts[at], place = data.places[thought.place];
      const made = template.content.cloneNode(true);
      const put = (name, text) => { made.querySelector("." + name).textContent = text; };
      put("t-gain", signed(thought.gain));
      put("t-advantage", signed(thought.advantage));
      put("t-reward", number(thought.reward));
      put("t-step", place.step);
      put("t-tail", "\u2026" + place.tail);
      put("t-name", place.name + ", token " + place.position);
      made.querySelector(".t-name").title = place.id;
      put("t-text", thought.text);
      if (data.sources.length > 1) put("t-source", data.sources[place.source]);
      const cells = made.querySelector(".t-cells");
      place.tokens.forEach((token, n) => {
        const cell = document.createElement("span");
        cell.className = "cell " + shade(thought.gains[n], data.bound);
        cell.title = "gain " + signed(thought.gains[n]) + " nats";
        cell.textContent = token;
        cells.append(cell);
      });
      if (thought.answer) put("t-answer", thought.answer);
      else made.querySelector(".t-answered").remove();
      const rewards = data.schemes.map((name, n) => "; " + name + " " + number(thought.rewards[n]));
      put("t-facts", thought.length + " tokens, " + (thought.closed ? "closed" : "cut off") +
        rewards.join(""));
      return made;
    }

    function more() {
      const part = document.createDocumentFragment();
      found.slice(shown, shown + BATCH).forEach((at) => part.append(row(at)));
      shown = Math.min(found.length, shown + BATCH);
      body.append(part);
      $("f-more").hidden = shown === found.length;
      $("f-more").textContent = "Show " + Math.min(BATCH, found.length - shown) + " more";
    }

    function refresh() {
      select();
      shown = 0;
      body.replaceChildren();
      more();
      const of = data.thoughts.length.toLocaleString("en");
      $("f-count").textContent = found.length.toLocaleString("en") + " of " + of + " thoughts" +
        (found.length ? "" : ": none fits; widen a range, or reset");
      const low = $("f-step-low").value, high = $("f-step-high").value;
      box.querySelectorAll(".steps a").forEach((link) => {
        if (link.textContent === low && low === high) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    }

    function reset() {
      box.querySelectorAll("input").forEach((input) => { input.value = ""; });
      box.querySelectorAll("select").forEach((choice) => { choice.selectedIndex = 0; });
    }

    /* #step-12: what a point of a curve and the list of steps lead to. */
    function follow() {
      const asked = /^#step-(\d+)$/.exec(location.hash);
      if (!asked) return false;
      $("f-step-low").value = $("f-step-high").value = asked[1];
      refresh();
      box.scrollIntoView();
      return true;
    }

    let waiting = 0;
    box.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(refresh, 60);
    });
    $("f-more").addEventListener("click", more);
    $("f-reset").addEventListener("click", () => {
      reset();
      if (/^#step-/.test(location.hash)) history.replaceState(null, "", "#thoughts");
      refresh();
    });
    addEventListener("hashchange", follow);
    // A step chosen twice is the same address: no hashchange tells of it.
    document.addEventListener("click", (event) => {
      const link = event.target.closest('a[href^="#step-"]');
      if (link && link.getAttribute("href") === location.hash) follow();
    });
    reset();
    box.hidden = false;
    if (!follow()) refresh();
  }

  /* Escape closes the panel of a position and goes back to its number. */
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const panel = document.querySelector(".panel:target");
    if (!panel) return;
    const mark = $(panel.id + "t");
    location.hash = "#" + mark.id;
    mark.focus();
  });

  /* Paper has no triangles to click. */
  let closedBefore = [];
  addEventListener("beforeprint", () => {
    closedBefore = [...document.querySelectorAll("details:not([open])")];
    closedBefore.forEach((element) => { element.open = true; });
  });
  addEventListener("afterprint", () => {
    closedBefore.forEach((element) => { element.open = false; });
    closedBefore = [];
  });

  const element = $("thought-data");
  if (element) startExplorer(element);
})();
