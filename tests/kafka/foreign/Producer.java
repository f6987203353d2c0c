// What somebody who has never heard of Windlass may publish, in every codec: SERVERS TOPIC NAME.
//
// tests/kafka/foreign.rs says what is to become of it; foreign/producer.py publishes the same.

import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.ArrayList;
import java.util.HashMap;

import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Producer {
    static final byte[] KEY = text("k");

    static String topic;

    static byte[] text(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] json(String name) {
        return text("{\"name\":\"" + name + "\"}");
    }

    static RecordHeaders headers(String... pairs) {
        RecordHeaders headers = new RecordHeaders();
        for (int at = 0; at < pairs.length; at += 2) {
            headers.add(pairs[at], pairs[at + 1] == null ? null : text(pairs[at + 1]));
        }
        return headers;
    }

    static ProducerRecord<byte[], byte[]> record(byte[] key, byte[] value, RecordHeaders headers) {
        return new ProducerRecord<>(topic, null, null, key, value, headers);
    }

    static void alone(String of, Map<String, Object> settings) throws Exception {
        String binary = of + "-binary", structured = of + "-structured";
        RecordHeaders envelope = headers("content-type", "application/cloudevents+json; charset=UTF-8");
        RecordHeaders odd = headers("fate", "dead");
        odd.add("bytes", new byte[] {(byte) 0xff, (byte) 0xfe, 0});
        for (var header : headers("empty", "", "twice", "1", "twice", "2", "none", null)) {
            odd.add(header);
        }
        byte[] name = text(of + "-bytes");
        byte[] bytes = new byte[name.length + 2];
        bytes[0] = (byte) 0xff;
        System.arraycopy(name, 0, bytes, 2, name.length);
        try (var producer = new KafkaProducer<byte[], byte[]>(settings)) {
            List<Future<?>> sent = new ArrayList<>();
            sent.add(producer.send(record(KEY, json(of + "-plain"), headers())));
            sent.add(producer.send(record(null, json(of + "-unkeyed"), headers())));
            sent.add(producer.send(record(text(of + "-tombstone"), null, headers())));
            sent.add(producer.send(record(KEY, json(binary), headers("ce_specversion", "1.0", "ce_id", binary,
                "ce_source", "/foreign", "ce_type", "made", "content-type", "application/json"))));
            sent.add(producer.send(record(KEY, text("{\"specversion\":\"1.0\",\"id\":\"" + structured
                + "\",\"source\":\"/foreign\",\"type\":\"made\",\"data\":{\"name\":\"" + structured + "\"}}"), envelope)));
            sent.add(producer.send(record(KEY, json(of + "-odd"), odd)));
            sent.add(producer.send(record(KEY, text("{\"name\":\"" + of + "-torn\""),
                headers("content-type", "application/json"))));
            sent.add(producer.send(record(KEY, bytes, headers())));
            sent.add(producer.send(record(KEY, text(of + "-nameless"), headers("ce_specversion", "1.0"))));
            sent.add(producer.send(record(KEY, text(of + "-envelope"), new RecordHeaders(envelope))));
            for (Future<?> one : sent) {
                one.get();
            }
        }
    }

    static void together(String of, Map<String, Object> settings) throws Exception {
        Map<String, Object> named = new HashMap<>(settings);
        named.put("transactional.id", topic + "." + of);
        try (var producer = new KafkaProducer<byte[], byte[]>(named)) {
            producer.initTransactions();
            String[] ends = {"committed", "aborted", "committed", "aborted"};
            for (int number = 0; number < ends.length; number++) {
                producer.beginTransaction();
                for (int place = 0; place < 3; place++) {
                    producer.send(record(KEY, json(of + "-" + ends[number] + "-" + number + "-" + place), headers()));
                }
                // What is aborted lies in the log all the same.
                producer.flush();
                if (ends[number].equals("committed")) {
                    producer.commitTransaction();
                } else {
                    producer.abortTransaction();
                }
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        topic = arguments[1];
        for (String codec : new String[] {"none", "gzip", "snappy", "lz4", "zstd"}) {
            Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0], "compression.type", codec,
                "linger.ms", 20, "key.serializer", ByteArraySerializer.class.getName(),
                "value.serializer", ByteArraySerializer.class.getName());
            alone(arguments[2] + "-" + codec, settings);
            together(arguments[2] + "-" + codec, settings);
        }
    }
}
