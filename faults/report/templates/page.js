// Draws the charts, in the colours of the style sheet, with one time for all of them.
(() => {
  "use strict";
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  const places = drawings.map((one) => document.getElementById(`chart-${one.name}`));
  const whole = drawings.map((one) => one.layout.xaxis.range.slice());
  const narrow = matchMedia("(max-width: 700px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const webgl = (() => {
    const context = document.createElement("canvas").getContext("webgl");
    return Boolean(context);
  })();
  let time = null; // what is enlarged, null = the whole

  function coloured(value, styles) {
    if (typeof value === "string" && value.startsWith("--")) {
      return styles.getPropertyValue(value).trim() || value;
    }
    if (Array.isArray(value)) return value.map((one) => coloured(one, styles));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, coloured(one, styles)]));
    }
    return value;
  }

  function draw() {
    const styles = getComputedStyle(document.documentElement);
    return Promise.all(drawings.map((one, at) => {
      const data = coloured(one.data, styles);
      const layout = coloured(one.layout, styles);
      if (!webgl) data.forEach((trace) => { if (trace.type === "scattergl") trace.type = "scatter"; });
      if (narrow.matches) {
        layout.margin = { ...layout.margin, l: 98 };
        layout.font.size = 10;
        layout.height += 15 * data.length; // the legend has a line for each
      }
      // A finger that moves over a chart scrolls the page.
      layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
      layout.xaxis.range = (time || whole[at]).slice();
      return Plotly.react(places[at], data, layout, {
        responsive: true, displaylogo: false, displayModeBar: !narrow.matches, doubleClick: "reset",
        modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
      });
    }));
  }

  let moving = false;
  function link(at) {
    places[at].on("plotly_relayout", async (change) => {
      if (moving) return;
      let range = change["xaxis.range"];
      if ("xaxis.range[0]" in change) range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (change["xaxis.autorange"]) range = whole[at];
      if (!range) return;
      time = range.slice();
      moving = true;
      try {
        await Promise.all(places.map((place) => Plotly.relayout(place, { "xaxis.range": time.slice() })));
      } finally {
        moving = false;
      }
    });
  }

  draw().then(() => {
    places.forEach((_, at) => link(at));
    document.documentElement.dataset.charts = "drawn";
  });
  for (const query of [dark, narrow]) query.addEventListener("change", draw);
})();
