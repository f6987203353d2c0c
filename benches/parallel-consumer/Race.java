import com.sun.management.OperatingSystemMXBean;
import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.BitSet;
import java.util.List;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Confluent's parallel-consumer on its own table, for scripts/bench-parallel-consumer; what Windlass does beside it is
 * in race.rs.
 *
 * <pre>
 * Race publish BROKER TOPIC JOBS KEYS                     a topic of one partition with so many records
 * Race work BROKER TOPIC JOBS UNORDERED|KEY|PARTITION     works them all; prints what it took as a line of JSON
 * </pre>
 */
public class Race {
    static final int IN_FLIGHT = 100;

    public static void main(String[] words) throws Exception {
        String broker = words[1], topic = words[2];
        int jobs = Integer.parseInt(words[3]);
        if (words[0].equals("publish")) {
            publish(broker, topic, jobs, Integer.parseInt(words[4]));
        } else {
            // What a virtual machine has not compiled yet would count against it, so that it may run once in advance.
            work(broker, topic, jobs, ProcessingOrder.UNORDERED, topic + "-warm");
            System.out.println(work(broker, topic, jobs, ProcessingOrder.valueOf(words[4]), topic + "-" + words[4]));
        }
        // Its threads need not be waited for.
        System.exit(0);
    }

    /** Record i has key i modulo the keys, and waits 0 to 4 whole milliseconds, by a seed of its own. */
    static void publish(String broker, String topic, int jobs, int keys) throws Exception {
        Properties properties = properties(broker);
        try (Admin admin = Admin.create(properties)) {
            admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get();
        }
        properties.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        properties.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        Random random = new Random(1);
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(properties)) {
            for (int id = 0; id < jobs; id++) {
                String value = "{\"id\":" + id + ",\"ms\":" + random.nextInt(5) + "}";
                producer.send(new ProducerRecord<>(topic, "key-" + id % keys, value));
            }
        }
    }

    static String work(String broker, String topic, int jobs, ProcessingOrder order, String group) throws Exception {
        Properties properties = properties(broker);
        properties.put("group.id", group + "-" + ProcessHandle.current().pid());
        properties.put("auto.offset.reset", "earliest");
        properties.put("enable.auto.commit", "false");
        properties.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        properties.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        var options = ParallelConsumerOptions.<String, String>builder()
            .consumer(new KafkaConsumer<>(properties))
            .ordering(order)
            .maxConcurrency(IN_FLIGHT)
            .build();
        ParallelStreamProcessor<String, String> processor = ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(topic));
        Tally tally = new Tally(jobs);
        processor.poll(context -> {
            String value = context.value();
            int comma = value.indexOf(',');
            int id = Integer.parseInt(value, 6, comma, 10);
            tally.began();
            try {
                Thread.sleep(Integer.parseInt(value, comma + 6, value.length() - 1, 10));
            } catch (InterruptedException interrupted) {
                throw new IllegalStateException(interrupted);
            }
            tally.ended(id);
        });
        if (!tally.all.await(120, TimeUnit.SECONDS)) {
            throw new IllegalStateException("not all were worked within two minutes");
        }
        processor.close(Duration.ofSeconds(20), io.confluent.parallelconsumer.internal.DrainingCloseable.DrainingMode.DONT_DRAIN);
        return tally.told();
    }

    static Properties properties(String broker) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", broker);
        return properties;
    }

    /** From the first start to the last end: each job once, how long, and the CPU of this process meanwhile. */
    static class Tally {
        final CountDownLatch all;
        private final BitSet seen = new BitSet();
        private final int jobs;
        private long from, to, cpuFrom, cpuTo;
        private int ended, twice;

        Tally(int jobs) {
            this.jobs = jobs;
            this.all = new CountDownLatch(jobs);
        }

        synchronized void began() {
            if (from == 0) {
                from = System.nanoTime();
                cpuFrom = cpu();
            }
        }

        synchronized void ended(int id) {
            if (seen.get(id)) {
                twice++;
                return;
            }
            seen.set(id);
            if (++ended == jobs) {
                to = System.nanoTime();
                cpuTo = cpu();
            }
            all.countDown();
        }

        synchronized String told() throws Exception {
            String peak = Files.lines(Path.of("/proc/self/status")).filter(line -> line.startsWith("VmHWM")).findFirst().get();
            return String.format(
                "{\"seconds\":%.4f,\"cpu_s\":%.3f,\"peak_mib\":%.1f,\"twice\":%d}",
                (to - from) / 1e9, (cpuTo - cpuFrom) / 1e9, Integer.parseInt(peak.replaceAll("\\D", "")) / 1024.0, twice);
        }

        private static long cpu() {
            return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
        }
    }
}
