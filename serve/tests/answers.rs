//! What is answered: whole and in pieces, several at once, held to forms, about pictures, by tools.

mod common;

use common::*;
use serde_json::{Value as Json, json};
use vela_serve::ServerConfig;

async fn served() -> Outcome<Served> {
    serve(small(), ServerConfig::default()).await
}

fn with(mut base: Json, more: Json) -> Json {
    if let (Some(base), Some(more)) = (base.as_object_mut(), more.as_object()) {
        base.extend(more.clone());
    }
    base
}

/// The choices that a stream tells: text, why it ended, log-probabilities.
fn told(events: &[Json], count: usize) -> Vec<(String, String, Vec<Json>)> {
    let mut all = vec![(String::new(), String::new(), Vec::new()); count];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten()) {
        let one = &mut all[choice["index"].as_u64().unwrap_or(0) as usize];
        one.0 += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
        one.1 += choice["finish_reason"].as_str().unwrap_or_default();
        one.2.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_the_whole_answer_says() -> Outcome {
    let served = served().await?;
    let asked = json!({"messages": [{"role": "system", "content": "be"}, about(&[&png(9)?], "what?")], "n": 3,
        "seed": 7, "temperature": 1.5, "max_tokens": 30, "logprobs": true, "top_logprobs": 2});
    let whole = chat(served.at, &asked).await?;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let whole = whole.json()?;
    let stream = with(asked, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = chat(served.at, &stream).await?.events()?;
    let pieces = told(&events, 3);
    let choices = whole["choices"].as_array().ok_or("no choices")?;
    assert_eq!(choices.len(), 3);
    for (choice, (text, finish, logprobs)) in choices.iter().zip(&pieces) {
        assert_eq!(choice["message"]["content"], json!(text));
        assert_eq!(choice["finish_reason"], json!(finish));
        let tokens = choice["logprobs"]["content"].as_array().ok_or("no log-probabilities")?;
        assert_eq!(tokens.len(), logprobs.len());
        for (a, b) in tokens.iter().zip(logprobs) {
            // What else runs changes the last digits, not the token.
            let near =
                |x: &Json, y: &Json| x.as_f64().zip(y.as_f64()).is_some_and(|(x, y)| (x - y).abs() < 1e-4);
            assert!(a["token"] == b["token"] && near(&a["logprob"], &b["logprob"]), "{a} {b}");
        }
        assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().map(Vec::len) == Some(2)));
        assert!(logprobs.iter().all(|token| token["logprob"].as_f64().is_some_and(|x| x <= 0.0)));
    }
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    let last = events.last().ok_or("no events")?;
    let (usage, other) = (&last["usage"], &whole["usage"]);
    assert_eq!(
        (last["choices"].clone(), &usage["completion_tokens"]),
        (json!([]), &other["completion_tokens"])
    );
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_keeps_to_its_form() -> Outcome {
    let served = served().await?;
    let schema = json!({"type": "object", "required": ["colour", "count"], "additionalProperties": false,
        "properties": {"colour": {"enum": ["red", "green"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 99}}});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "seen", "schema": schema, "strict": true}});
    for temperature in [0.0, 2.0] {
        let asked =
            with(words("x", 60), json!({"response_format": format, "temperature": temperature, "seed": 3}));
        let got = chat(served.at, &asked).await?.json()?;
        let made: Json =
            serde_json::from_str(got["choices"][0]["message"]["content"].as_str().unwrap_or_default())?;
        assert!(made["colour"] == "red" || made["colour"] == "green", "{made}");
        assert!(made["count"].as_u64().is_some_and(|n| (1..=99).contains(&n)), "{made}");
        assert_eq!(got["choices"][0]["finish_reason"], "stop");
    }
    let asked =
        with(words("x", 40), json!({"response_format": {"type": "regex", "regex": "[a-c]{3}-[0-9]"}}));
    let text = chat(served.at, &asked).await?.json()?["choices"][0]["message"]["content"].clone();
    assert_eq!(text.as_str().map(str::len), Some(5));
    let asked = with(words("x", 40), json!({"response_format": {"type": "json_object"}}));
    let text = chat(served.at, &asked).await?.json()?["choices"][0]["message"]["content"].clone();
    assert!(text.as_str().is_some_and(|text| text.starts_with('{')), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_question_about_a_picture_encodes_nothing() -> Outcome {
    let served = served().await?;
    let (one, two) = (png(1)?, png(2)?);
    let asked = json!({"messages": [about(&[&one, &two], "first?")], "max_tokens": 5, "temperature": 0});
    let first = chat(served.at, &asked).await?.json()?;
    assert_eq!(metric(served.at, "pictures_encoded_total").await?, 2.0);
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let again = json!({"messages": [about(&[&one, &two], "second?")], "max_tokens": 5, "temperature": 0});
    let second = chat(served.at, &again).await?.json()?;
    assert_eq!(metric(served.at, "pictures_encoded_total").await?, 2.0);
    assert_eq!(metric(served.at, "picture_cache_hits_total").await?, 2.0);
    // Sixteen tokens each, and the words before them.
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached.is_some_and(|n| n >= 32), "{second}");
    assert_eq!(metric(served.at, "prompt_tokens_cached_total").await? as u64, cached.unwrap_or(0));
    // What a model has read does not change what it says.
    let fresh = self::served().await?;
    assert_eq!(chat(fresh.at, &again).await?.json()?["choices"], second["choices"]);
    // JPEG and WebP are read too, and the picture is really seen.
    for (kind, format) in [("jpeg", image::ImageFormat::Jpeg), ("webp", image::ImageFormat::WebP)] {
        let url = data_url(kind, &picture(33, 21, 200, format)?);
        let asked = json!({"messages": [about(&[&url], "second?")], "max_tokens": 5});
        assert_eq!(chat(served.at, &asked).await?.status, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_tells_what_it_looked_at() -> Outcome {
    let served = served().await?;
    let asked = json!({"messages": [about(&[&png(9)?, &png(7)?], "what?")], "max_tokens": 8, "temperature": 0,
        "vela": {"attention": true}});
    let whole = chat(served.at, &asked).await?.json()?;
    let maps = whole["choices"][0]["vela"]["attention"].as_array().ok_or("no maps")?;
    assert_eq!(maps.len(), 2);
    for map in maps {
        let weights: Vec<f64> =
            map["weights"].as_array().into_iter().flatten().filter_map(Json::as_f64).collect();
        assert_eq!((&map["rows"], &map["columns"], weights.len()), (&json!(4), &json!(4), 16));
        let share = map["share"].as_f64().unwrap_or_default();
        assert!(share > 0.05 && (weights.iter().sum::<f64>() - share).abs() < 1e-4, "{map}");
        assert_eq!(map["area"].as_array().map(Vec::len), Some(4));
    }
    assert!(maps[0]["weights"] != maps[1]["weights"]);
    let events = chat(served.at, &with(asked.clone(), json!({"stream": true}))).await?.events()?;
    let told: Vec<&Json> = events.iter().map(|event| &event["choices"][0]["vela"]["attention"]).collect();
    let told: Vec<&&Json> = told.iter().filter(|map| !map.is_null()).collect();
    assert_eq!(told, [&&whole["choices"][0]["vela"]["attention"]]);
    // Who does not ask is told nothing; without pictures there are none to tell of.
    let plain = chat(served.at, &with(asked.clone(), json!({"vela": {}}))).await?.json()?;
    assert_eq!(plain["choices"][0].get("vela"), None);
    let none = chat(served.at, &with(words("hm", 3), json!({"vela": {"attention": true}}))).await?.json()?;
    assert_eq!(none["choices"][0]["vela"], json!({"attention": []}));
    let wrong = chat(served.at, &with(asked, json!({"vela": {"heads": 3}}))).await?;
    assert_eq!((wrong.status, wrong.error()?.as_str()), (400, "vela.heads: this field is not known"));
    Ok(())
}

/// A LoRA folder for the queries of all layers.
fn adapter_dir(shade: f32) -> Outcome<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]});
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string())?;
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for layer in 0..2 {
        for (module, part, shape) in
            ["q_proj", "o_proj"].iter().flat_map(|m| [(m, "A", [2usize, 48]), (m, "B", [48, 2])])
        {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight");
            let start = data.len();
            for at in 0..shape[0] * shape[1] {
                data.extend((((at * 37 + layer) % 19) as f32 * shade - 0.3).to_le_bytes());
            }
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
        }
    }
    let header = Json::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.path().join("adapter_model.safetensors"), file)?;
    Ok(dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_asked_by_its_name() -> Outcome {
    let (one, two) = (adapter_dir(0.05)?, adapter_dir(0.08)?);
    let served = serve_with(small(), ServerConfig::default(), |service| {
        let of = service.model().decoder().config().clone();
        let load = |dir: &tempfile::TempDir| -> Outcome<_> {
            Ok(std::sync::Arc::new(vela_llm::Lora::load(dir.path(), &of).map_err(|e| e.to_string())?))
        };
        let adapters = vec![("one".to_owned(), load(&one)?), ("two".to_owned(), load(&two)?)];
        assert!(service.adapter("one").is_none());
        Ok(service.with_adapters(adapters)?)
    })
    .await?;
    let models = get(served.at, "/v1/models").await?.json()?;
    let listed = |name: &str| models["data"].as_array().into_iter().flatten().find(|m| m["id"] == name);
    assert_eq!(listed("one").map(|m| &m["parent"]), Some(&json!("babbler")));
    assert_eq!(listed("babbler").map(|m| &m["parent"]), Some(&Json::Null));
    assert_eq!(get(served.at, "/v1/models/two").await?.json()?["id"], "two");
    let ask = async |model: &str| {
        let asked = with(words("tell", 40), json!({ "model": model }));
        chat(served.at, &asked).await?.json()
    };
    let told = [ask("babbler").await?, ask("one").await?, ask("two").await?];
    let texts: Vec<&Json> = told.iter().map(|told| &told["choices"][0]["message"]["content"]).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert_eq!((&told[1]["model"], &told[0]["model"]), (&json!("one"), &json!("babbler")));
    // What one has read is nothing to another.
    assert!(told.iter().all(|told| told["usage"]["prompt_tokens_details"]["cached_tokens"] == 0));
    assert_eq!(ask("one").await?["choices"], told[1]["choices"]);
    let continued = json!({"model": "two", "prompt": "abc", "max_tokens": 3});
    assert_eq!(post(served.at, "/v1/completions", &continued).await?.json()?["model"], "two");
    let wrong = chat(served.at, &with(words("x", 2), json!({"model": "three"}))).await?;
    assert_eq!(
        (wrong.status, wrong.error()?.contains("this server has 'babbler', 'one', 'two'")),
        (404, true)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_end_an_answer_are_not_shown() -> Outcome {
    let served = served().await?;
    let whole = chat(served.at, &words("tell", 60)).await?.json()?;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    let stop: String = text.chars().skip(10).take(2).collect();
    let want = text.split(&stop).next().unwrap_or_default();
    let asked = with(words("tell", 60), json!({"stop": [stop, "never there"]}));
    let got = chat(served.at, &asked).await?.json()?;
    assert_eq!(
        (&got["choices"][0]["message"]["content"], &got["choices"][0]["finish_reason"]),
        (&json!(want), &json!("stop"))
    );
    let events = chat(served.at, &with(asked, json!({"stream": true}))).await?.events()?;
    assert_eq!(told(&events, 1)[0], (want.to_owned(), "stop".to_owned(), vec![]));
    // What was known of the question is told all the same.
    let cached = |told: &Json| told["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    let again = chat(served.at, &words("tell", 60)).await?.json()?;
    assert!(cached(&again) > 0 && cached(&got) == cached(&again), "{got} {again}");
    until(async || Ok(metric(served.at, "requests_running").await? == 0.0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_called_in_openai_s_form() -> Outcome {
    let served = served().await?;
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
        "properties": {"at": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["at"],
        "additionalProperties": false}}})
    };
    let base =
        with(words("look", 120), json!({"tools": [tool("look"), tool("move")], "seed": 1, "temperature": 1}));
    for (choice, names) in [
        (json!("required"), vec!["look", "move"]),
        (json!({"type": "function", "function": {"name": "move"}}), vec!["move"]),
    ] {
        let asked = with(base.clone(), json!({ "tool_choice": choice }));
        let got = chat(served.at, &asked).await?.json()?;
        let choice = &got["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Json::Null),
            "{got}"
        );
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert!(call["name"].as_str().is_some_and(|name| names.contains(&name)), "{got}");
        let arguments: Json = serde_json::from_str(call["arguments"].as_str().unwrap_or_default())?;
        assert!(arguments["at"].as_u64().is_some_and(|at| at <= 9));
        let events = chat(served.at, &with(asked, json!({"stream": true}))).await?.events()?;
        let calls = events.iter().find_map(|event| event["choices"][0]["delta"]["tool_calls"][0].as_object());
        assert_eq!(calls.map(|calls| &calls["function"]), Some(call));
        assert_eq!(told(&events, 1)[0].1, "tool_calls");
    }
    // Without a call, the text comes as it is; the conversation with a call in it is read.
    let plain = chat(served.at, &base).await?.json()?;
    assert!(plain["choices"][0]["message"]["content"].is_string(), "{plain}");
    let call =
        json!({"id": "a", "type": "function", "function": {"name": "look", "arguments": "{\"at\": 1}"}});
    let turns = json!([{"role": "user", "content": "look"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "a cube"}]);
    assert_eq!(chat(served.at, &with(base.clone(), json!({ "messages": turns }))).await?.status, 200);
    let wrong = chat(
        served.at,
        &with(base, json!({"tool_choice": {"type": "function", "function": {"name": "fly"}}})),
    )
    .await?;
    assert_eq!((wrong.status, wrong.error()?.contains("got 'fly'")), (400, true));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_gone_on_from() -> Outcome {
    let served = served().await?;
    let asked = json!({"prompt": ["one", "two", [5, 6, 7]], "n": 2, "max_tokens": 6, "temperature": 0, "logprobs": 2});
    let got = post(served.at, "/v1/completions", &asked).await?;
    assert_eq!(got.status, 200, "{}", got.text());
    let got = got.json()?;
    let choices = got["choices"].as_array().ok_or("no choices")?;
    assert_eq!(choices.len(), 6);
    assert_eq!(got["usage"]["prompt_tokens"], 9);
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], at);
        let logprobs = &choice["logprobs"];
        let count = logprobs["tokens"].as_array().map(Vec::len);
        assert!(count.is_some() && count == logprobs["top_logprobs"].as_array().map(Vec::len), "{choice}");
    }
    assert_eq!(choices[0]["text"], choices[1]["text"]);
    let alone =
        post(served.at, "/v1/completions", &json!({"prompt": "two", "max_tokens": 6, "temperature": 0}))
            .await?;
    assert_eq!(alone.json()?["choices"][0]["text"], choices[2]["text"]);
    let events = post(served.at, "/v1/completions", &with(asked, json!({"stream": true}))).await?.events()?;
    let pieces = told(&events, 6);
    assert!(choices.iter().zip(&pieces).all(|(choice, piece)| choice["text"] == json!(piece.0)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_what_each_gets_alone() -> Outcome {
    let served = served().await?;
    let question = |k: usize| -> Outcome<Json> {
        let url = png((k % 3) as u8)?;
        let message = if k.is_multiple_of(2) {
            about(&[&url], &format!("what {k}?"))
        } else {
            json!({"role": "user", "content": format!("say {k}")})
        };
        Ok(json!({"messages": [message], "temperature": 1, "seed": k, "max_tokens": 20}))
    };
    let mut alone = Vec::new();
    for k in 0..16 {
        alone.push(chat(served.at, &question(k)?).await?.json()?["choices"].clone());
    }
    let fresh = self::served().await?;
    let asking: Vec<_> = (0..48)
        .map(|k| {
            let at = fresh.at;
            let asked = question(k % 16);
            tokio::spawn(async move { chat(at, &asked?).await?.json() })
        })
        .collect();
    for (k, answer) in asking.into_iter().enumerate() {
        assert_eq!(answer.await??["choices"], alone[k % 16], "{k}");
    }
    assert_eq!(metric(fresh.at, "pictures_encoded_total").await?, 3.0);
    assert_eq!(metric(fresh.at, "requests_failed_total").await?, 0.0);
    Ok(())
}
